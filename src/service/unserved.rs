//! Requests that this service does not serve yet, handed to what settles their resources.
//!
//! A cast that is merely dropped leaves a volume in `uploading` or `managing` for ever. Each one therefore
//! has a function in `volume::unserved` that ends it as Cinder ends that request's failure; a call is
//! answered as an unknown method, because its caller is waiting.

use serde_json::Value;

use crate::backend::Backend;
use crate::context::RequestContext;
use crate::error::Result;
use crate::journal::Operation;
use crate::rpc::Method;
use crate::rpc::fault::no_such_method;
use crate::volume::unserved;

/// Settles the request.
///
/// # Errors
/// `NoSuchMethod` for calls; otherwise only when nothing could be recorded.
pub(super) async fn settle(
    backend: &Backend,
    context: &RequestContext,
    operation: &Operation,
    method: &Method,
    name: &'static str,
) -> Result<Value> {
    let (b, c, o) = (backend, context, operation);
    match method {
        Method::Reimage(a) => unserved::reimage(b, c, o, &a.volume.volume.id).await,
        Method::AcceptTransfer(a) => unserved::accept_transfer(b, &a.volume_id).await,
        _ => return Err(no_such_method(name)),
    }?;
    Ok(Value::Null)
}
