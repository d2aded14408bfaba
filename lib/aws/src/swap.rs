//! Compare-and-swap of an object in S3.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::operation::put_object::PutObjectError;
use aws_sdk_s3::primitives::ByteStream;

/// Puts JSON in place of the object with this ETag, or where there is none, and tells whether it is there now: it is not when
/// another writer was first.
pub(crate) async fn swap(
    client: &Client,
    (bucket, key): (&str, &str),
    etag: Option<&str>,
    json: Vec<u8>,
) -> Result<bool, SdkError<PutObjectError>> {
    let put = client.put_object().bucket(bucket).key(key);
    let put = match etag {
        Some(etag) => put.if_match(etag),
        None => put.if_none_match("*"),
    };
    let put = put.content_type("application/json").body(ByteStream::from(json));
    match put.send().await {
        Ok(_) => Ok(true),
        // 412: another writer was first; 409: one is writing right now.
        Err(e)
            if matches!(
                e.code(),
                Some("PreconditionFailed" | "ConditionalRequestConflict")
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}
