//! An error as the exception that cinder-api will raise.
//!
//! cinder-api rebuilds an exception only from module `cinder.exception`, and chooses the HTTP status by
//! its class. So every [`Code`] has one class here, with the sentence that Cinder's users know, and the
//! document carries what Python's constructor needs. Reference: rpc.md 1.8; `cinder/exception.py`.

use serde_json::{Map, Value, json};

use crate::error::{Code, Error};

const CINDER: &str = "cinder.exception";
const DISPATCHER: &str = "oslo_messaging.rpc.dispatcher";
const BUILTINS: &str = "builtins";

/// The exception class of a code.
struct Class {
    module: &'static str,
    name: &'static str,
    /// `code` of the class: the HTTP status.
    status: Option<u16>,
    /// The class's sentence around its argument, and the argument's name.
    sentence: Option<(&'static str, &'static str, &'static str)>,
}

const fn cinder(
    name: &'static str,
    status: u16,
    sentence: (&'static str, &'static str, &'static str),
) -> Class {
    Class { module: CINDER, name, status: Some(status), sentence: Some(sentence) }
}

const fn plain(module: &'static str, name: &'static str, status: Option<u16>) -> Class {
    Class { module, name, status, sentence: None }
}

/// No wildcard: a new code must say what cinder-api will answer.
fn class(code: Code) -> Class {
    match code {
        Code::InvalidInput => cinder("InvalidInput", 400, ("Invalid input received: ", "reason", "")),
        Code::InvalidVolume => cinder("InvalidVolume", 400, ("Invalid volume: ", "reason", "")),
        Code::InvalidSnapshot => cinder("InvalidSnapshot", 400, ("Invalid snapshot: ", "reason", "")),
        Code::InvalidUuid => cinder("InvalidUUID", 400, ("Expected a UUID but received ", "uuid", ".")),
        Code::InvalidVolumeAttachMode => plain(CINDER, "InvalidVolumeAttachMode", Some(400)),
        Code::Invalid | Code::Conflict => plain(CINDER, "Invalid", Some(400)),
        Code::VolumeNotFound => {
            cinder("VolumeNotFound", 404, ("Volume ", "volume_id", " could not be found."))
        }
        Code::SnapshotNotFound => {
            cinder("SnapshotNotFound", 404, ("Snapshot ", "snapshot_id", " could not be found."))
        }
        Code::AttachmentNotFound => cinder(
            "VolumeAttachmentNotFound",
            404,
            ("Volume attachment could not be found with filter: ", "filter", "."),
        ),
        Code::BackupNotFound => {
            cinder("BackupNotFound", 404, ("Backup ", "backup_id", " could not be found."))
        }
        Code::InvalidBackup => cinder("InvalidBackup", 400, ("Invalid backup: ", "reason", "")),
        Code::VolumeTypeNotFound => {
            cinder("VolumeTypeNotFound", 404, ("Volume type ", "volume_type_id", " could not be found."))
        }
        Code::ServiceNotFound => {
            cinder("ServiceNotFound", 404, ("Service ", "service_id", " could not be found."))
        }
        Code::VolumeAttached => cinder(
            "VolumeAttached",
            400,
            ("Volume ", "volume_id", " is still attached, detach volume first."),
        ),
        Code::VolumeBusy => {
            cinder("VolumeIsBusy", 500, ("deleting volume ", "volume_name", " that has snapshot"))
        }
        Code::SnapshotBusy => cinder(
            "SnapshotIsBusy",
            500,
            ("deleting snapshot ", "snapshot_name", " that has dependent volumes"),
        ),
        Code::CleanableInUse => plain(CINDER, "CleanableInUse", Some(400)),
        Code::DriverNotInitialized => plain(CINDER, "DriverNotInitialized", Some(500)),
        Code::VolumeBackend | Code::DeadlineExceeded => cinder(
            "VolumeBackendAPIException",
            500,
            ("Bad or unexpected response from the storage volume backend API: ", "data", ""),
        ),
        Code::ExportFailure => cinder("ExportFailure", 400, ("Failed to export for volume: ", "reason", "")),
        Code::RemoveExport => plain(CINDER, "RemoveExportException", Some(500)),
        Code::Replication => plain(CINDER, "ReplicationError", Some(500)),
        Code::InvalidReplicationTarget => {
            cinder("InvalidReplicationTarget", 400, ("Invalid Replication Target: ", "reason", ""))
        }
        Code::UnableToFailOver => cinder(
            "UnableToFailOver",
            500,
            // The closing bracket without an opening one is upstream's.
            ("Unable to failover to replication target: ", "reason", ")."),
        ),
        Code::OverQuota => plain(CINDER, "QuotaError", Some(413)),
        Code::UnsupportedCombination => Class {
            module: "cinder.volume.drivers.rbd",
            ..cinder("RBDDriverException", 500, ("RBD Cinder driver failure: ", "reason", ""))
        },
        Code::VolumeMigration => {
            cinder("VolumeMigrationFailed", 500, ("Volume migration failed: ", "reason", ""))
        }
        Code::MetadataCopy => {
            cinder("MetadataCopyFailure", 400, ("Failed to copy metadata to volume: ", "reason", ""))
        }
        Code::ImageNotFound => cinder("ImageNotFound", 404, ("Image ", "image_id", " could not be found.")),
        Code::ImageNotAuthorized => {
            cinder("ImageNotAuthorized", 500, ("Not authorized for image ", "image_id", "."))
        }
        Code::ImageLimitExceeded => plain(CINDER, "ImageLimitExceeded", Some(413)),
        Code::ImageDownload => plain(CINDER, "ImageDownloadFailed", Some(500)),
        Code::ImageUnacceptable | Code::ImageDoesNotFit => plain(CINDER, "ImageUnacceptable", Some(500)),
        Code::ImageTooBig => plain(CINDER, "ImageTooBig", Some(400)),
        Code::ImageConversionNotAllowed => plain(CINDER, "ImageConversionNotAllowed", Some(500)),
        Code::ImageCopy => {
            cinder("ImageCopyFailure", 400, ("Failed to copy image to volume: ", "reason", ""))
        }
        Code::ImageSignature => cinder(
            "ImageSignatureVerificationException",
            500,
            ("Failed to verify image signature, reason: ", "reason", "."),
        ),
        Code::InvalidSignatureImage => cinder(
            "InvalidSignatureImage",
            500,
            ("Signature metadata is incomplete for image: ", "image_id", "."),
        ),
        Code::GlanceConnection => {
            cinder("GlanceConnectionFailed", 500, ("Connection to glance failed: ", "reason", ""))
        }
        Code::NotAuthorized => plain(CINDER, "NotAuthorized", Some(403)),
        Code::KeyManager => cinder("KeyManagerError", 500, ("key manager error: ", "reason", "")),
        Code::NotSupported => {
            cinder("NotSupportedOperation", 405, ("Operation not supported: ", "operation", "."))
        }
        Code::NoSuchMethod => plain(DISPATCHER, "NoSuchMethod", None),
        Code::UnsupportedVersion => plain(DISPATCHER, "UnsupportedVersion", None),
        Code::BadArguments => plain(BUILTINS, "TypeError", None),
        Code::InvalidValue => plain(BUILTINS, "ValueError", None),
        Code::UnsupportedObject => {
            plain("oslo_versionedobjects.exception", "UnsupportedObjectError", Some(500))
        }
        Code::IncompatibleObject => {
            plain("oslo_versionedobjects.exception", "IncompatibleObjectVersion", Some(500))
        }
        Code::MalformedMessage
        | Code::Database
        | Code::Broker
        | Code::Glance
        | Code::Compute
        | Code::NoEndpoint
        | Code::Cancelled
        | Code::Config
        | Code::Internal => plain(CINDER, "CinderException", Some(500)),
    }
}

/// The sentence that the user of the API reads: Cinder's own for that class, with the error's text as its
/// argument. A text that is such a sentence already, or names a resource in its own words, stays as it is.
pub fn message(error: &Error) -> String {
    let user = error.user();
    let Some((before, argument, after)) = class(error.code()).sentence else {
        return user.to_owned();
    };
    let is_sentence = user.strip_prefix(before).is_some_and(|rest| rest.ends_with(after));
    // Classes about one resource take its id; any other text is a sentence of its own.
    let takes_reason = matches!(argument, "reason" | "data" | "operation");
    if is_sentence || (!takes_reason && user.contains(char::is_whitespace)) {
        user.to_owned()
    } else {
        format!("{before}{user}{after}")
    }
}

/// The document that goes into `failure` of a reply: JSON in a string.
pub fn document(error: &Error) -> String {
    let class = class(error.code());
    let message = message(error);
    let mut kwargs = Map::new();
    if let Some((before, argument, after)) = class.sentence {
        let value = message.strip_prefix(before).and_then(|m| m.strip_suffix(after)).unwrap_or(&message);
        kwargs.insert(argument.to_owned(), Value::String(value.to_owned()));
    }
    if let Some(status) = class.status {
        kwargs.insert("code".to_owned(), status.into());
    }
    json!({
        "class": class.name,
        "module": class.module,
        "message": message,
        // The caller appends this to the text of the exception and cinder-api logs it.
        "tb": ["Traceback (most recent call last):\n", format!("{}.{}: {message}\n", class.module, class.name)],
        "args": [message],
        "kwargs": kwargs,
    })
    .to_string()
}

/// oslo.messaging's error for a method that the endpoint does not have.
pub fn no_such_method(method: &str) -> Error {
    Error::new(Code::NoSuchMethod, format!("Endpoint does not support RPC method {method}"))
}

/// oslo.messaging's error for a version that the endpoint does not speak.
pub fn unsupported_version(version: &str, method: &str) -> Error {
    let mut text = format!("Endpoint does not support RPC version {version}");
    if !method.is_empty() {
        text.push_str(". Attempted method: ");
        text.push_str(method);
    }
    Error::new(Code::UnsupportedVersion, text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parsed(error: &Error) -> Value {
        serde_json::from_str(&document(error)).unwrap()
    }

    #[test]
    fn a_bare_id_becomes_cinders_sentence() {
        let d = parsed(&Error::new(Code::VolumeNotFound, "66aba478"));
        assert_eq!(d["class"], "VolumeNotFound");
        assert_eq!(d["module"], "cinder.exception");
        assert_eq!(d["message"], "Volume 66aba478 could not be found.");
        assert_eq!(d["args"], json!(["Volume 66aba478 could not be found."]));
        assert_eq!(d["kwargs"], json!({"volume_id": "66aba478", "code": 404}));
    }

    #[test]
    fn a_full_sentence_is_not_wrapped_twice() {
        for text in ["Volume v1 could not be found.", "Volume v1 is on another backend"] {
            assert_eq!(message(&Error::new(Code::VolumeNotFound, text)), text);
        }
        let wrapped = message(&Error::new(Code::InvalidInput, "no initiator"));
        assert_eq!(wrapped, "Invalid input received: no initiator");
        assert_eq!(message(&Error::new(Code::InvalidInput, wrapped.clone())), wrapped);
    }

    #[test]
    fn only_the_users_text_travels() {
        let error = Error::new(Code::VolumeBackend, "rbd failed")
            .detail("mon host 10.0.0.1")
            .caused_by(std::io::Error::other("errno 110"));
        let text = document(&error);
        assert!(text.contains("rbd failed") && !text.contains("10.0.0.1") && !text.contains("errno"));
    }

    #[test]
    fn oslos_own_errors_keep_their_modules() {
        let d = parsed(&unsupported_version("4.0", "m"));
        assert_eq!(d["module"], "oslo_messaging.rpc.dispatcher");
        assert_eq!(d["message"], "Endpoint does not support RPC version 4.0. Attempted method: m");
        assert_eq!(parsed(&no_such_method("x"))["class"], "NoSuchMethod");
        assert_eq!(parsed(&Error::new(Code::BadArguments, "x"))["class"], "TypeError");
    }
}
