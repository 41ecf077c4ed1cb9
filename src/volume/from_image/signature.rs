//! Which signature a downloaded image must bear (`verify_glance_signatures`).
//!
//! What an image that is cloned holds is not looked at, as upstream: it is not read.

use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::{Code, Error, Result};
use crate::openstack::glance::{Claim, Image, Verifier};

/// What is to be verified while the image is downloaded; `None` for an image that is not signed.
///
/// # Errors
/// `InvalidSignatureImage` when a part of the signature is missing; `ImageSignature` when it cannot be verified,
/// whoever is to blame.
pub(super) async fn verifier(
    backend: &Backend,
    context: &RequestContext,
    image: &Image,
) -> Result<Option<Verifier>> {
    let id = &image.id;
    let (signature, hash, key_type, certificate) = match Claim::of(image) {
        Claim::None => return Ok(None),
        Claim::Incomplete => {
            let text = format!("Signature metadata is incomplete for image: {id}.");
            return Err(Error::new(Code::InvalidSignatureImage, text));
        }
        Claim::Signed { signature, hash, key_type, certificate } => (signature, hash, key_type, certificate),
    };
    let none = || {
        let text =
            format!("Failed to verify image signature, reason: Failed to get verifier for image: {id}.");
        Error::new(Code::ImageSignature, text)
    };
    let keys = &backend.globals.openstack.keys;
    let certificate =
        Box::pin(keys.certificate(context, &certificate)).await.map_err(|e| none().caused_by(e))?;
    let verifier = Verifier::new(&signature, &hash, &key_type, &certificate);
    verifier.map(Some).map_err(|why| none().detail(why))
}
