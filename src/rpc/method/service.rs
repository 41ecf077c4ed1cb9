//! What is asked of the service itself: capabilities, clean-up, log levels.

use super::Args;
use crate::error::{Code, Error, Result};
use crate::rpc::dispatch::Method;
use crate::rpc::objects::{CleanupRequest, LogLevel};

pub(crate) fn publish_service_capabilities(_: &mut Args) -> Result<Method> {
    Ok(Method::PublishServiceCapabilities)
}

pub(crate) fn get_capabilities(args: &mut Args) -> Result<Method> {
    // Required upstream, but truth is all that is asked of it.
    let discover = args.required("discover")?;
    match discover {
        serde_json::Value::Bool(discover) => Ok(Method::GetCapabilities { discover }),
        serde_json::Value::Null => Ok(Method::GetCapabilities { discover: false }),
        _ => Err(Error::new(Code::BadArguments, "get_capabilities() argument 'discover' must be a boolean")),
    }
}

pub(crate) fn do_cleanup(args: &mut Args) -> Result<Method> {
    Ok(Method::DoCleanup(Box::new(CleanupRequest::parse(&args.required("cleanup_request")?)?)))
}

pub(crate) fn set_log_levels(args: &mut Args) -> Result<Method> {
    Ok(Method::SetLogLevels(LogLevel::parse(&args.required("log_request")?)?))
}

pub(crate) fn get_log_levels(args: &mut Args) -> Result<Method> {
    Ok(Method::GetLogLevels(LogLevel::parse(&args.required("log_request")?)?))
}

pub(crate) fn secure_file_operations_enabled(args: &mut Args) -> Result<Method> {
    Ok(Method::SecureFileOperationsEnabled { volume: args.maybe_volume("volume")? })
}
