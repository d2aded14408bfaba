//! The registry bucket: enforcers by hash, and which one a SKU and plan have now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use domain::account::{IdError, SkuId};
use domain::entitlement::{Offer, PolicyPin};
use domain::names;
use domain::ontology::MAX_KEY_BYTES;
use domain::webhook::event::PlanReference;
use policy::Alias;
use policy::bundle::Bundle;
use policy::enforcer::{BundleError, Enforcer};
use serde::{Deserialize, Serialize};

use crate::clients::explain;
use crate::swap::swap;

/// Why the registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{operation} of s3://{bucket}/{key}: {detail}")]
    Call {
        operation: &'static str,
        bucket: String,
        key: String,
        detail: String,
    },
    /// An index object is not of its form.
    #[error("registry object {key} is not an index entry")]
    Index {
        key: String,
        #[source]
        source: serde_json::Error,
    },
    /// No enforcer of that hash is stored.
    #[error("registry has no enforcer {hash}")]
    Missing { hash: String },
    /// An enforcer's bytes are not what their name says, or not an enforcer.
    #[error("enforcer {hash} cannot be loaded")]
    Bundle {
        hash: String,
        #[source]
        source: BundleError,
    },
    /// An enforcer's SKU or plan is none.
    #[error("enforcer {hash} has a SKU or plan that cannot be one")]
    Name {
        hash: String,
        #[source]
        source: IdError,
    },
    /// An enforcer's bytes do not hash to its name.
    #[error("enforcer stored as {expected} hashes to {found}")]
    Hash { expected: String, found: String },
}

impl RegistryError {
    /// Whether asking again cannot help: what is stored is not what its name says.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::Bundle { .. }
            | Self::Hash { .. }
            | Self::Name { .. }
            | Self::Index { .. } => true,
            Self::Call { .. } => false,
        }
    }
}

/// Which enforcer a SKU and plan have; of a provider's plan id, which SKU and plan it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    pub sku_id: String,
    pub plan_type: String,
    pub policy_version: String,
    /// SHA-256 of the enforcer's bytes.
    pub policy_hash: String,
}

/// An index entry as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    pub entry: IndexEntry,
    /// By which S3 tells whether somebody else has written since.
    etag: String,
}

/// What became of a policy that was to be put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    Done,
    /// Another one of its plan was first.
    Overtaken,
    /// A provider's plan id is another plan's, whose policy in force says so.
    Taken {
        provider: String,
        plan_id: String,
        by: IndexEntry,
    },
}

/// The registry bucket.
pub struct Registry {
    client: Client,
    bucket: String,
    loaded: Mutex<HashMap<String, Arc<Enforcer>>>,
}

/// Enforcers kept loaded: several versions and plans in a warm process, and no growth without end.
const KEPT: usize = 32;

impl Registry {
    /// The registry of a stack.
    #[must_use]
    pub fn new(client: Client, bucket: String) -> Self {
        Self {
            client,
            bucket,
            loaded: Mutex::new(HashMap::new()),
        }
    }

    fn error(&self, operation: &'static str, key: &str, detail: String) -> RegistryError {
        RegistryError::Call {
            operation,
            bucket: self.bucket.clone(),
            key: key.to_owned(),
            detail,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<(Vec<u8>, String)>, RegistryError> {
        if key.len() > MAX_KEY_BYTES {
            return Ok(None);
        }
        let answer = match self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(key)
            .send()
            .await
        {
            Ok(answer) => answer,
            Err(e) if matches!(e.as_service_error(), Some(GetObjectError::NoSuchKey(_))) => return Ok(None),
            Err(e) => return Err(self.error("GetObject", key, explain(&e))),
        };
        let etag = answer.e_tag().unwrap_or_default().to_owned();
        let body = answer
            .body
            .collect()
            .await
            .map_err(|e| self.error("GetObject", key, e.to_string()))?;
        Ok(Some((body.to_vec(), etag)))
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), RegistryError> {
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .content_type("application/json");
        let answer = put.body(ByteStream::from(bytes)).send().await;
        answer
            .map(|_| ())
            .map_err(|e| self.error("PutObject", key, explain(&e)))
    }

    /// Puts an entry in place of the one that was read, and tells whether that one was still there.
    async fn replace(
        &self,
        key: &str,
        before: Option<&Current>,
        entry: &IndexEntry,
    ) -> Result<bool, RegistryError> {
        let bytes = serde_json::to_vec(entry).map_err(|source| RegistryError::Index {
            key: key.to_owned(),
            source,
        })?;
        let etag = before.map(|before| before.etag.as_str());
        let swapped = swap(&self.client, (&self.bucket, key), etag, bytes).await;
        swapped.map_err(|e| self.error("PutObject", key, explain(&e)))
    }

    async fn entry(&self, key: &str) -> Result<Option<Current>, RegistryError> {
        let Some((bytes, etag)) = self.get(key).await? else {
            return Ok(None);
        };
        let entry = serde_json::from_slice(&bytes).map_err(|source| RegistryError::Index {
            key: key.to_owned(),
            source,
        })?;
        Ok(Some(Current { entry, etag }))
    }

    /// The enforcer a SKU and plan have now, if the plan is known.
    ///
    /// # Errors
    /// [`RegistryError`] when the bucket does not answer or the entry is not of its form.
    pub async fn current(&self, sku_id: &str, plan_type: &str) -> Result<Option<Current>, RegistryError> {
        self.entry(&names::index_key(sku_id, plan_type)).await
    }

    async fn alias(&self, provider: &str, plan_id: &str) -> Result<Option<Current>, RegistryError> {
        self.entry(&names::alias_key(provider, plan_id)).await
    }

    /// The plan that a provider's plan id means, as it is in force; `None` where its policy no longer says so.
    async fn aliased(&self, provider: &str, plan_id: &str) -> Result<Option<IndexEntry>, RegistryError> {
        let Some(Current { entry: meant, .. }) = self.alias(provider, plan_id).await? else {
            return Ok(None);
        };
        let current = self.current(&meant.sku_id, &meant.plan_type).await?;
        let Some(Current { entry, .. }) = current else {
            return Ok(None);
        };
        let enforcer = self.enforcer(&entry.policy_hash).await?;
        let mut aliases = enforcer.bundle().aliases.iter();
        let says_so = aliases.any(|alias| alias.provider.as_str() == provider && alias.plan_id == plan_id);
        Ok(says_so.then_some(entry))
    }

    /// What a plan is here now; `None` when no policy is known for it.
    ///
    /// # Errors
    /// [`RegistryError`] when the bucket does not answer, or what it holds is not of its form.
    pub async fn offer(&self, plan: &PlanReference) -> Result<Option<Offer>, RegistryError> {
        let entry = match plan {
            PlanReference::Canonical { sku_id, plan_type } => {
                let current = self.current(sku_id.as_str(), plan_type.as_str()).await?;
                current.map(|current| current.entry)
            }
            PlanReference::Provider { provider, plan_id } => self.aliased(provider, plan_id).await?,
        };
        let Some(entry) = entry else { return Ok(None) };
        let enforcer = self.enforcer(&entry.policy_hash).await?;
        let offer = offer_of(enforcer.bundle(), &entry.policy_hash);
        offer.map(Some).map_err(|source| RegistryError::Name {
            hash: entry.policy_hash,
            source,
        })
    }

    /// The product that a plan belongs to; `None` when nothing is known of it.
    ///
    /// # Errors
    /// [`RegistryError`] when the bucket does not answer, or what it holds is not of its form.
    pub async fn product(&self, plan: &PlanReference) -> Result<Option<SkuId>, RegistryError> {
        let (provider, plan_id) = match plan {
            PlanReference::Canonical { sku_id, .. } => return Ok(Some(sku_id.clone())),
            PlanReference::Provider { provider, plan_id } => (provider, plan_id),
        };
        let Some(Current { entry, .. }) = self.alias(provider, plan_id).await? else {
            return Ok(None);
        };
        let sku_id = SkuId::parse(entry.sku_id);
        sku_id.map(Some).map_err(|source| RegistryError::Name {
            hash: entry.policy_hash,
            source,
        })
    }

    /// The enforcer of a hash, loaded once per process.
    ///
    /// # Errors
    /// [`RegistryError`] when it is not there, its bytes do not hash to its name, or it cannot be loaded.
    pub async fn enforcer(&self, hash: &str) -> Result<Arc<Enforcer>, RegistryError> {
        // A poisoned lock only means that a panic happened elsewhere; the map itself is whole.
        let kept = self
            .loaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(hash)
            .cloned();
        if let Some(enforcer) = kept {
            return Ok(enforcer);
        }
        let bytes = self.get(&names::enforcer_key(hash)).await?;
        let (bytes, _) = bytes.ok_or_else(|| RegistryError::Missing {
            hash: hash.to_owned(),
        })?;
        let enforcer = Enforcer::load(&bytes).map_err(|source| RegistryError::Bundle {
            hash: hash.to_owned(),
            source,
        })?;
        if enforcer.hash() != hash {
            return Err(RegistryError::Hash {
                expected: hash.to_owned(),
                found: enforcer.hash().to_owned(),
            });
        }
        let enforcer = Arc::new(enforcer);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.len() >= KEPT {
            loaded.clear();
        }
        loaded.insert(hash.to_owned(), Arc::clone(&enforcer));
        Ok(enforcer)
    }

    /// The bytes of an enforcer, for an archive.
    ///
    /// # Errors
    /// [`RegistryError`] when it is not there.
    pub async fn enforcer_bytes(&self, hash: &str) -> Result<Vec<u8>, RegistryError> {
        let bytes = self.get(&names::enforcer_key(hash)).await?;
        bytes
            .map(|(bytes, _)| bytes)
            .ok_or_else(|| RegistryError::Missing {
                hash: hash.to_owned(),
            })
    }

    /// Stores an enforcer under its hash. Doing so again changes nothing.
    pub async fn store_enforcer(&self, hash: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        self.put(&names::enforcer_key(hash), bytes.to_vec()).await
    }

    /// Makes an enforcer the current one of its SKU and plan in place of the one that was read, and the plan that of the
    /// providers' plan ids that its policy names. A plan id that another policy in force names stays that one's: it moves
    /// once that policy is deployed without it.
    pub async fn publish(
        &self,
        entry: &IndexEntry,
        before: Option<&Current>,
        aliases: &[Alias],
    ) -> Result<Published, RegistryError> {
        for Alias { provider, plan_id } in aliases {
            let provider = provider.as_str();
            let key = names::alias_key(provider, plan_id);
            let known = self.entry(&key).await?;
            let means =
                |known: &IndexEntry| (&known.sku_id, &known.plan_type) == (&entry.sku_id, &entry.plan_type);
            if known.as_ref().is_some_and(|known| means(&known.entry)) {
                continue;
            }
            if let Some(by) = self.aliased(provider, plan_id).await? {
                return Ok(Published::Taken {
                    provider: provider.to_owned(),
                    plan_id: plan_id.clone(),
                    by,
                });
            }
            if !self.replace(&key, known.as_ref(), entry).await? {
                return Ok(Published::Overtaken);
            }
        }
        let key = names::index_key(&entry.sku_id, &entry.plan_type);
        match self.replace(&key, before, entry).await? {
            true => Ok(Published::Done),
            false => Ok(Published::Overtaken),
        }
    }
}

/// What an enforcer's bundle offers.
///
/// # Errors
/// [`IdError`] when its SKU or plan is none: the compiler makes no such bundle.
pub fn offer_of(bundle: &Bundle, hash: &str) -> Result<Offer, IdError> {
    Ok(Offer {
        sku_id: bundle.sku_id.clone().try_into()?,
        plan_type: bundle.plan_type.clone().try_into()?,
        policy: PolicyPin {
            version: bundle.version.to_string(),
            hash: hash.to_owned(),
        },
        quota: bundle.quota,
        isolation: bundle.isolation,
    })
}
