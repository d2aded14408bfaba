//! The JSON Schema of each operation's receipt, as it stands in `docs/receipts/`.
//!
//! Made from the types themselves, in tests only: what runs knows nothing of schemas. A new variant of [`Payload`] is
//! picked up here by itself; its file and its row are then missing, and `UPDATE_SCHEMAS=1` writes them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use jiff::Timestamp;
use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::canonical::INTEGER_LIMIT;
use crate::receipt::{Draft, Payload, Receipt, UsdDelta};
use crate::{Head, Signer, append};

const SHA256: &str = "^[0-9a-f]{64}$";
/// Where the table of operations begins and ends in `docs/receipts/README.md`.
const TABLE: [&str; 2] = ["<!-- operations -->\n", "<!-- end of operations -->\n"];

/// A string of one form. The length is said as well: in some tools `$` lets a line feed at the end pass.
fn text(pattern: &str, length: usize) -> Schema {
    json_schema!({ "type": "string", "pattern": pattern, "minLength": length, "maxLength": length })
}

/// A UUID as receipts write it: lower case, with hyphens.
pub(crate) fn uuid(_: &mut SchemaGenerator) -> Schema {
    let mut schema = text("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", 36);
    schema.insert("format".to_owned(), "uuid".into());
    schema
}

/// RFC 3339 in UTC with exactly milliseconds, in the years 0 to 9999.
pub(crate) fn timestamp(_: &mut SchemaGenerator) -> Schema {
    let date = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])";
    let time = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}";
    let mut schema = text(&format!("^{date}T{time}Z$"), 24);
    schema.insert("format".to_owned(), "date-time".into());
    schema
}

/// SHA-256 in lower-case hex.
pub(crate) fn sha256(_: &mut SchemaGenerator) -> Schema {
    text(SHA256, 64)
}

/// The first 16 hex digits of a public key's SHA-256.
pub(crate) fn key_id(_: &mut SchemaGenerator) -> Schema {
    text("^[0-9a-f]{16}$", 16)
}

/// 64 bytes in padded base64; the last digit before the padding carries two bits only.
pub(crate) fn signature(_: &mut SchemaGenerator) -> Schema {
    let mut schema = text("^[A-Za-z0-9+/]{85}[AQgw]==$", 88);
    schema.insert("contentEncoding".to_owned(), "base64".into());
    schema
}

/// The range of [`UsdDelta`]. Nothing is said of its step: validators count in binary fractions.
pub(crate) fn usd_delta(schema: &mut Schema) {
    let most = UsdDelta::from_ten_thousandths(999_999_999_999).unwrap();
    schema.insert("minimum".to_owned(), json!(-f64::from(most)));
    schema.insert("maximum".to_owned(), json!(f64::from(most)));
}

/// One operation, as its types describe it.
struct Operation {
    name: String,
    /// The doc comment of its variant.
    says: String,
    status: &'static str,
    /// The schema of its payload alone.
    payload: Value,
    /// The schema of its receipt.
    schema: Value,
}

/// Every operation there is, in the order of [`Payload`].
fn operations() -> Vec<Operation> {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut common = settings
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Receipt>()
        .to_value();
    tighten(&mut common);
    let Some(Value::Array(payloads)) = common.as_object_mut().unwrap().remove("oneOf") else {
        panic!("the payload is no longer one of several");
    };
    payloads
        .into_iter()
        .map(|payload| operation(&common, payload))
        .collect()
}

fn operation(common: &Value, payload: Value) -> Operation {
    let name = payload["properties"]["operation"]["const"]
        .as_str()
        .unwrap()
        .to_owned();
    let says = payload["description"].as_str().unwrap().to_owned();
    let status = sample(&name, &payload, Extent::Least).status().as_str();

    let mut properties = common["properties"].as_object().unwrap().clone();
    let words = properties["status"]["oneOf"].as_array().unwrap();
    let word = words.iter().find(|word| word["const"] == status).unwrap().clone();
    properties.insert("status".to_owned(), word);
    for (field, schema) in payload["properties"].as_object().unwrap() {
        let common = properties.insert(field.clone(), schema.clone());
        assert_eq!(common, None, "{name}: the field `{field}` is in every receipt");
    }
    properties["operation"]["description"] = "What the receipt is about.".into();
    for (field, schema) in &properties {
        assert!(
            schema["description"].is_string(),
            "{name}: {field} has no doc comment"
        );
    }

    // Optional for the type, which is also the receipt that is being signed; a ledger line has it.
    let mut required = vec![json!("signature")];
    for part in [common, &payload] {
        required.extend(part["required"].as_array().unwrap().iter().cloned());
    }
    required.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": format!("urn:marketplace-governor:receipt:{name}"),
        "title": format!("Receipt {name}"),
        "description": says,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    schema.sort_all_objects();
    Operation {
        name,
        says,
        status,
        payload,
        schema,
    }
}

/// Holds a schema, and all inside it, to what receipts are: no unknown field, no null, integers that a double holds.
fn tighten(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(tighten);
            if let Some(Value::Array(types)) = map.get("type") {
                let kept: Vec<_> = types.iter().filter(|name| **name != "null").collect();
                let [one] = kept[..] else {
                    panic!("a field of the types {types:?}");
                };
                map.insert("type".to_owned(), one.clone());
            }
            // A property may be called `type` too; only a schema's own is a text.
            match map.get("type").and_then(Value::as_str) {
                Some("object") => {
                    assert!(map.contains_key("properties"), "a map of unknown fields: {map:?}");
                    map.insert("additionalProperties".to_owned(), false.into());
                }
                Some("integer") => {
                    assert_eq!(map.get("minimum"), Some(&json!(0)), "a signed integer");
                    map.insert("maximum".to_owned(), json!(INTEGER_LIMIT - 1));
                    map.remove("format");
                }
                Some("number") => {
                    map.remove("format");
                }
                _ => {}
            }
        }
        Value::Array(list) => list.iter_mut().for_each(tighten),
        _ => {}
    }
}

/// How much a sample has in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// What it must have, and the least of that.
    Least,
    /// All it may have, and the most of that.
    Most,
}

/// The real payload of an operation, read from what its schema allows.
fn sample(name: &str, payload: &Value, extent: Extent) -> Payload {
    let value = instance(payload, extent);
    let read: Payload = serde_json::from_value(value.clone())
        .unwrap_or_else(|error| panic!("{name}: the type refuses what its schema allows: {error}: {value}"));
    assert_eq!(read.operation(), name);
    read
}

fn instance(schema: &Value, extent: Extent) -> Value {
    let most = extent == Extent::Most;
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    for choices in ["enum", "oneOf"] {
        if let Some(Value::Array(choices)) = schema.get(choices) {
            let choice = if most { choices.last() } else { choices.first() }.unwrap();
            return choice.get("const").unwrap_or(choice).clone();
        }
    }
    match schema["type"].as_str() {
        Some("object") => {
            let required = schema["required"].as_array().unwrap();
            let fields = schema["properties"].as_object().unwrap().iter();
            fields
                .filter(|(name, _)| most || required.contains(&json!(name)))
                .map(|(name, schema)| (name.clone(), instance(schema, extent)))
                .collect()
        }
        Some("array") if most => vec![instance(&schema["items"], extent); 2].into(),
        Some("array") => json!([]),
        Some("integer" | "number") => schema[if most { "maximum" } else { "minimum" }].clone(),
        Some("boolean") => most.into(),
        Some("string") => match (schema["format"].as_str(), schema["pattern"].as_str()) {
            (Some("uuid"), _) => "01234567-89ab-7cde-8f01-23456789abcd".into(),
            (Some("date-time"), _) => "2026-01-02T03:04:05.678Z".into(),
            (None, Some(SHA256)) => "0123456789abcdef".repeat(4).into(),
            (None, None) if most => "é 😀\u{0} \"quoted\" \\ \n".into(),
            (None, None) => "".into(),
            _ => panic!("`instance` knows no text of the form {schema}"),
        },
        _ => panic!("`instance` knows no value of the form {schema}"),
    }
}

/// Two ledger lines of an operation, made as all receipts are: the least and the most it may say.
fn lines(operation: &Operation) -> [Value; 2] {
    let draft = |extent: Extent| Draft {
        receipt_id: Uuid::from_u128(extent as u128),
        account_id: "a-1".to_owned(),
        occurred_at: "2026-01-02T03:04:05.678912Z".parse().unwrap(),
        duration_ms: if extent == Extent::Most {
            INTEGER_LIMIT - 1
        } else {
            0
        },
        policy_hash: (extent == Extent::Most).then(|| "0123456789abcdef".repeat(4)),
        payload: sample(&operation.name, &operation.payload, extent),
    };
    let drafts = [draft(Extent::Least), draft(Extent::Most)];
    let signer = Signer::generate([42; 32]);
    let appended = append(&Head::empty(), &drafts, Timestamp::UNIX_EPOCH, &signer).unwrap();
    [0, 1].map(|n| serde_json::from_str(&appended.sealed[n].line).unwrap())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/receipts")
}

/// The rows of README.md: first what every receipt has, then each operation with what it adds.
fn table(operations: &[Operation]) -> String {
    let mut common: Vec<_> = fields(&operations[0]);
    common.retain(|field| operations.iter().all(|one| fields(one).contains(field)));
    let mut rows = "| operation | status | what it says | fields beyond the common ones |\n".to_owned();
    rows.push_str("|---|---|---|---|\n");
    writeln!(rows, "| every one | | | the common ones: {} |", common.join(", ")).unwrap();
    for operation in operations {
        let mut own = fields(operation);
        own.retain(|field| !common.contains(field));
        let own = own.join(", ");
        let Operation {
            name, says, status, ..
        } = operation;
        let says = says.replace('\n', " ").replace('|', "\\|");
        writeln!(
            rows,
            "| [`{name}`]({name}.schema.json) | `{status}` | {says} | {own} |"
        )
        .unwrap();
    }
    rows
}

/// Its fields by name; a question mark behind those that may be absent.
fn fields(operation: &Operation) -> Vec<String> {
    let required = operation.schema["required"].as_array().unwrap();
    let names = operation.schema["properties"].as_object().unwrap().keys();
    names
        .map(|name| {
            let mark = if required.contains(&json!(name)) { "" } else { "?" };
            format!("`{name}`{mark}")
        })
        .collect()
}

#[test]
fn schemas_in_docs_are_those_of_the_types() {
    let operations = operations();
    let mut expected = BTreeMap::new();
    for operation in &operations {
        let text = format!("{}\n", serde_json::to_string_pretty(&operation.schema).unwrap());
        expected.insert(format!("{}.schema.json", operation.name), text);
    }
    let readme = fs::read_to_string(folder().join("README.md")).unwrap();
    let (before, rest) = readme.split_once(TABLE[0]).unwrap();
    let (_, after) = rest.split_once(TABLE[1]).unwrap();
    let rows = table(&operations);
    expected.insert(
        "README.md".to_owned(),
        format!("{before}{}{rows}{}{after}", TABLE[0], TABLE[1]),
    );

    // At compile time, which cargo keeps track of: this crate reads no environment.
    if option_env!("UPDATE_SCHEMAS") == Some("1") {
        for (name, text) in &expected {
            fs::write(folder().join(name), text).unwrap();
        }
    }
    for (name, text) in &expected {
        let found = fs::read_to_string(folder().join(name)).unwrap_or_default();
        assert!(
            found == *text,
            "docs/receipts/{name} is not what the types say; UPDATE_SCHEMAS=1 writes it (see README.md there)"
        );
    }
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            expected.contains_key(&name),
            "docs/receipts/{name} belongs to no operation"
        );
    }
}

/// A receipt, whether its operation's schema must take it, and what is the matter with it.
struct Case {
    operation: String,
    what: String,
    receipt: Value,
    valid: bool,
}

/// Changed copies of a receipt, each with what was changed.
type Copies = Vec<(String, Value)>;

/// Copies of `value` in which one value, or one field of an object at any depth, was changed by `change`.
fn changed(value: &Value, change: &dyn Fn(&str, &Value) -> Vec<Value>) -> Copies {
    let Value::Object(map) = value else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for (field, old) in map {
        let replaced = change(field, old).into_iter().map(|new| (field.clone(), new));
        let inside = changed(old, change).into_iter();
        let inside = inside.map(|(path, new)| (format!("{field}.{path}"), new));
        for (path, new) in replaced.chain(inside) {
            let mut copy = map.clone();
            copy.insert(field.clone(), new);
            all.push((path, copy.into()));
        }
    }
    all
}

/// Every object in `value`, by copies of the whole in which `edit` changed it.
fn edited(value: &Value, edit: &dyn Fn(&Map<String, Value>) -> Copies) -> Copies {
    let mut all = edit(value.as_object().unwrap());
    all.extend(changed(value, &|_, old| match old {
        Value::Object(map) => edit(map).into_iter().map(|(_, new)| new).collect(),
        _ => Vec::new(),
    }));
    all
}

/// What is not the value of such a field, though it may look like it.
fn wrong(field: &str, old: &Value) -> Vec<Value> {
    let mut all = vec![Value::Null];
    match old {
        Value::Number(number) if number.is_u64() => {
            all.extend([json!(INTEGER_LIMIT), json!(-1), json!(1.5), json!("1")]);
        }
        Value::Number(_) => all.extend([json!(1e8), json!(-1e8), json!("1.5")]),
        Value::Bool(_) => all.extend([json!(0), json!("true")]),
        Value::Array(_) => all.extend([json!("x"), json!([1]), json!([null])]),
        Value::Object(_) => all.extend([json!("x"), json!([]), json!({})]),
        _ => all.extend([json!(1), json!(["x"])]),
    }
    let text = old.as_str().unwrap_or_default();
    match field {
        "timestamp" | "occurred_at" | "deployment_timestamp" | "revoked_from" | "expires_at" | "due_at" => {
            all.extend(
                [
                    "2026-01-02T03:04:05Z",
                    "2026-01-02T03:04:05.6Z",
                    "2026-01-02T03:04:05.678901Z",
                    "2026-01-02T03:04:05.678+00:00",
                    "2026-01-02T03:04:05.678",
                    "2026-01-02 03:04:05.678Z",
                    "2026-01-02t03:04:05.678z",
                    "2026-13-02T03:04:05.678Z",
                    "2026-01-02T24:04:05.678Z",
                ]
                .map(Value::from),
            )
        }
        "receipt_id" | "previous_action_receipt_id" => {
            all.extend([json!(text.replace('-', "")), json!(format!("{{{text}}}"))]);
            all.push(json!("01234567-89AB-7CDE-8F01-23456789ABCD"));
        }
        "policy_hash" | "prev_hash" | "key_id" | "archive_sha256" | "sha256" => {
            all.extend([json!(text[1..]), json!(format!("{text}0"))]);
            all.push(json!(format!("A{}", &text[1..])));
        }
        "signature" => {
            all.extend([json!(""), json!(text[4..]), json!(text.trim_end_matches('='))]);
            all.push(json!(format!("{}B==", &text[..85])));
        }
        "status" => {
            let words = ["success", "failed", "refused", "routed", "started", "ignored"];
            assert!(words.contains(&text));
            all.extend(words.iter().filter(|word| **word != text).map(|word| json!(word)));
            all.push(json!("Success"));
        }
        _ => return all,
    }
    all.push(json!(format!("{text}\n")));
    all
}

fn cases(operations: &[Operation]) -> Vec<Case> {
    let mut all = Vec::new();
    for operation in operations {
        let name = &operation.name;
        let mut add = |what: String, receipt: Value, valid: bool| {
            all.push(Case {
                operation: name.clone(),
                what,
                receipt,
                valid,
            });
        };
        let [least, most] = lines(operation);
        add("the least".to_owned(), least.clone(), true);
        add("the most".to_owned(), most.clone(), true);

        let without = |map: &Map<String, Value>| {
            let drop = |field: &String| {
                let mut copy = map.clone();
                copy.remove(field);
                (field.clone(), Value::from(copy))
            };
            map.keys().map(drop).collect::<Vec<_>>()
        };
        // What the shortest receipt has, every receipt has.
        for (field, receipt) in edited(&least, &without) {
            add(format!("without {field}"), receipt, false);
        }
        for (field, receipt) in without(most.as_object().unwrap()) {
            if least.get(&field).is_none() {
                add(format!("without the optional {field}"), receipt, true);
            }
        }
        let with_more = |map: &Map<String, Value>| {
            let mut copy = map.clone();
            copy.insert("unknown".to_owned(), json!("x"));
            vec![("unknown".to_owned(), Value::from(copy))]
        };
        for (path, receipt) in edited(&most, &with_more) {
            add(format!("with one field more: {path}"), receipt, false);
        }
        for (path, receipt) in changed(&most, &wrong) {
            add(format!("another {path}"), receipt, false);
        }
        for other in operations.iter().filter(|other| other.name != *name) {
            let mut claimed = most.clone();
            claimed["operation"] = other.name.as_str().into();
            add(format!("said to be {}", other.name), claimed, false);
            add(
                format!("a receipt {}", other.name),
                lines(other)[1].clone(),
                false,
            );
        }
    }
    all
}

/// A validator that was not made here: Python's `jsonschema`, which `make setup` brings for the template's linter.
///
/// Validators in Rust were tried: they turn on features of crates below the AWS SDKs, and tests would then compile
/// those a second time, apart from what is deployed.
const VALIDATOR: &str = "
import json, sys
from jsonschema import Draft202012Validator as Validator
given = json.load(sys.stdin)
for schema in given['schemas'].values():
    Validator.check_schema(schema)
validators = {
    name: Validator(schema, format_checker=Validator.FORMAT_CHECKER)
    for name, schema in given['schemas'].items()
}
json.dump([validators[name].is_valid(receipt) for name, receipt in given['receipts']], sys.stdout)
";

fn verdicts(operations: &[Operation], cases: &[Case]) -> Vec<bool> {
    let schemas: Map<_, _> = operations
        .iter()
        .map(|one| (one.name.clone(), one.schema.clone()))
        .collect();
    let receipts: Vec<_> = cases
        .iter()
        .map(|case| json!([case.operation, case.receipt]))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("input.json");
    fs::write(
        &input,
        json!({ "schemas": schemas, "receipts": receipts }).to_string(),
    )
    .unwrap();

    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/python");
    let python = if local.exists() {
        local
    } else {
        PathBuf::from("python3")
    };
    let output = Command::new(&python)
        .args(["-c", VALIDATOR])
        .stdin(Stdio::from(File::open(input).unwrap()))
        .output()
        .unwrap_or_else(|error| panic!("{python:?} must be installed for this test: {error}"));
    assert!(
        output.status.success(),
        "{python:?} with its package jsonschema is needed for this test (`make setup`): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn schemas_take_what_the_ledger_writes_and_nothing_else() {
    let operations = operations();
    let cases = cases(&operations);
    let verdicts = verdicts(&operations, &cases);
    assert_eq!(verdicts.len(), cases.len());
    let mut wrong = String::new();
    for (case, found) in cases.iter().zip(verdicts) {
        if found != case.valid {
            let Case { operation, what, .. } = case;
            let verb = if found { "takes" } else { "refuses" };
            writeln!(wrong, "{operation} {verb} {what}: {}", case.receipt).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
