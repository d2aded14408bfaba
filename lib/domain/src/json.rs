//! JSON from outside is read as it is meant: an object is no array, and a name stands in it once.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A `T` that is written as an object. What serde derives for a struct also takes an array of its fields' values, in the order in
/// which the source happens to name them.
#[derive(Debug, Clone, PartialEq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Reader<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }

        reader.deserialize_map(Reader(PhantomData))
    }
}

/// Reads a field that is an object: `#[serde(deserialize_with = "object")]`.
///
/// # Errors
/// Where it is something else, or not of `T`'s form.
pub fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(reader: D) -> Result<T, D::Error> {
    Object::deserialize(reader).map(|Object(found)| found)
}

/// Reads an object of anything, in which no name stands twice at any depth: `#[serde(deserialize_with = "map")]`. Who keeps the
/// first of two and who keeps the last would else decide about different requests.
///
/// # Errors
/// Where it is something else, or a name stands twice: then the error says which.
pub fn map<'de, D: Deserializer<'de>>(reader: D) -> Result<Map<String, Value>, D::Error> {
    reader.deserialize_map(Unique)
}

/// How the error of a name that stands twice begins; the name follows, and a backtick.
pub const TWICE: &str = "duplicate name `";

/// Reads a map of any values, in which no name stands twice.
struct Unique;

impl<'de> Visitor<'de> for Unique {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut read: A) -> Result<Self::Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = read.next_key::<String>()? {
            if map.contains_key(&name) {
                return Err(A::Error::custom(format!("{TWICE}{name}`")));
            }
            map.insert(name, read.next_value_seed(AnyValue)?);
        }
        Ok(map)
    }
}

/// Reads any value, as [`Value`] does, but for names that stand twice.
struct AnyValue;

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        Unique.visit_map(map).map(Value::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut read: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = read.next_element_seed(AnyValue)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_bool<E>(self, found: bool) -> Result<Value, E> {
        Ok(Value::Bool(found))
    }

    fn visit_u64<E>(self, found: u64) -> Result<Value, E> {
        Ok(found.into())
    }

    fn visit_i64<E>(self, found: i64) -> Result<Value, E> {
        Ok(found.into())
    }

    fn visit_f64<E>(self, found: f64) -> Result<Value, E> {
        Ok(found.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Two {
        one: String,
        other: Option<u64>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Asked {
        #[serde(deserialize_with = "map")]
        parameters: Map<String, Value>,
    }

    #[test]
    fn an_object_is_no_array() {
        let read = |text| serde_json::from_str::<Object<Two>>(text).map_err(|e| e.to_string());
        let two = Two {
            one: "x".to_owned(),
            other: Some(7),
        };
        assert!(
            serde_json::from_str::<Two>(r#"["x",7]"#).is_ok(),
            "what serde derives"
        );
        assert_eq!(read(r#"{"one":"x","other":7}"#), Ok(Object(two)));
        for (text, says) in [
            (r#"["x",7]"#, "invalid type: sequence, expected an object"),
            ("null", "invalid type: null, expected an object"),
            (r#"{"one":"x","one":"y"}"#, "duplicate field `one`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_stands_once_at_any_depth() {
        for (parameters, says) in [
            (r#"{"a":1,"b":1,"a":2}"#, "duplicate name `a`"),
            (r#"{"a":{"b":1,"b":1}}"#, "duplicate name `b`"),
            (r#"{"a":[{"b":1},{"c":1,"c":1}]}"#, "duplicate name `c`"),
            (r#"{"a":1,"\u0061":2}"#, "duplicate name `a`"),
            ("[]", "invalid type: sequence, expected a map"),
            ("7", "invalid type: integer `7`, expected a map"),
        ] {
            let text = format!(r#"{{"parameters":{parameters}}}"#);
            let error = serde_json::from_str::<Asked>(&text).unwrap_err().to_string();
            assert!(error.starts_with(says), "{text}: {error}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(".{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Whatever stands once is read as serde_json reads it.
        #[test]
        fn values_are_read_as_ever(value in value()) {
            let text = json!({ "parameters": { "x": value } }).to_string();
            let plain: Value = serde_json::from_str(&text).unwrap();
            let read: Asked = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(Value::Object(read.parameters), plain["parameters"].clone());
        }
    }
}
