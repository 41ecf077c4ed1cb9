//! One error for the whole service, whatever boundary it crosses.
//!
//! An operator and a user need different sentences about the same failure, the RPC layer needs a
//! Cinder exception that cinder-api turns into the right HTTP status, and a retry loop needs to
//! know whether trying again can help. All four are answered by one type: a [`Code`] (what went
//! wrong, in Cinder's vocabulary), a [`Kind`] derived from it by one exhaustive match, a `user`
//! text that may reach the REST API, and a `detail` that only the log sees.
//!
//! Neither text may ever hold a secret (cephx key, password, token).

use std::error::Error as StdError;
use std::fmt;

/// Result of everything that can fail in Scoria's own vocabulary.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in the words of `cinder/exception.py`. Each code is one exception class on the
/// wire (`rpc::fault` maps it), so adding one means deciding what cinder-api will answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The caller's input is wrong (HTTP 400, `InvalidInput`).
    InvalidInput,
    /// The volume is in the wrong state (HTTP 400, `InvalidVolume`).
    InvalidVolume,
    /// The snapshot is in the wrong state (HTTP 400, `InvalidSnapshot`).
    InvalidSnapshot,
    /// Not a UUID where Cinder wants one (HTTP 400, `InvalidUUID`).
    InvalidUuid,
    /// Attach mode other than ro/rw, or rw on a read-only volume (`InvalidVolumeAttachMode`).
    InvalidVolumeAttachMode,
    /// Wrong service or state for the request (`Invalid`).
    Invalid,
    /// No such volume (`VolumeNotFound`).
    VolumeNotFound,
    /// No such snapshot (`SnapshotNotFound`).
    SnapshotNotFound,
    /// No such attachment (`VolumeAttachmentNotFound`).
    AttachmentNotFound,
    /// No such backup (`BackupNotFound`).
    BackupNotFound,
    /// The backup is in the wrong state (`InvalidBackup`).
    InvalidBackup,
    /// No such volume type (`VolumeTypeNotFound`).
    VolumeTypeNotFound,
    /// No such service row (`ServiceNotFound`).
    ServiceNotFound,
    /// The volume is attached (`VolumeAttached`).
    VolumeAttached,
    /// The volume has watchers or a lock that is not ours (`VolumeIsBusy`).
    VolumeBusy,
    /// The snapshot has children that could not be flattened (`SnapshotIsBusy`).
    SnapshotBusy,
    /// Somebody else changed the row first: the conditional UPDATE matched nothing (`Invalid`).
    Conflict,
    /// Somebody else is already working on this resource's `workers` row (`CleanableInUse`).
    CleanableInUse,
    /// The backend has not come up: keyring, pool or site missing (`DriverNotInitialized`).
    DriverNotInitialized,
    /// Ceph refused or failed (`VolumeBackendAPIException`).
    VolumeBackend,
    /// Export of a volume failed (`ExportFailure`).
    ExportFailure,
    /// Removing an export failed (`RemoveExportException`).
    RemoveExport,
    /// Enabling or disabling replication of one volume failed (`ReplicationError`).
    Replication,
    /// The failover target is unknown, current, or none is left (`InvalidReplicationTarget`).
    InvalidReplicationTarget,
    /// This backend cannot fail over at all (`UnableToFailOver`).
    UnableToFailOver,
    /// The project's quota does not allow it (`QuotaError`).
    OverQuota,
    /// A type asks for things that exclude each other (`RBDDriverException`).
    UnsupportedCombination,
    /// A volume could not be moved to another backend (`VolumeMigrationFailed`).
    VolumeMigration,
    /// Copying an image's metadata failed (`MetadataCopyFailure`).
    MetadataCopy,
    /// No such image, or none that the user may see (`ImageNotFound`).
    ImageNotFound,
    /// The user may not do that with the image (`ImageNotAuthorized`).
    ImageNotAuthorized,
    /// The user's quota of image storage is used up (`ImageLimitExceeded`).
    ImageLimitExceeded,
    /// The bytes of an image did not arrive, or are not those that Glance has taken in
    /// (`ImageDownloadFailed`).
    ImageDownload,
    /// The image is not what it is called, or may not be read (`ImageUnacceptable`).
    ImageUnacceptable,
    /// The image is larger than the volume (`ImageUnacceptable` too).
    ImageDoesNotFit,
    /// There is no room for the image where it would be converted (`ImageTooBig`).
    ImageTooBig,
    /// The image would have to be converted, which is switched off (`ImageConversionNotAllowed`).
    ImageConversionNotAllowed,
    /// The bytes of an image could not be written (`ImageCopyFailure`).
    ImageCopy,
    /// The image's signature could not be verified (`ImageSignatureVerificationException`).
    ImageSignature,
    /// The image has a part of a signature (`InvalidSignatureImage`).
    InvalidSignatureImage,
    /// No server of Glance could be reached (`GlanceConnectionFailed`).
    GlanceConnection,
    /// Glance answered with an error that has no class in Cinder (`CinderException`).
    Glance,
    /// There is no token to ask another service with, or keystone issues none (`NotAuthorized`).
    NotAuthorized,
    /// Nova could not be told, or answered with an error (`CinderException`).
    Compute,
    /// The key of an encrypted volume could not be had (`KeyManagerError`).
    KeyManager,
    /// No catalogue and no option says where another service is (`CinderException`).
    NoEndpoint,
    /// The operation exists in Cinder but not (yet) here (`NotSupportedOperation`).
    NotSupported,
    /// The RPC method is unknown (oslo.messaging `NoSuchMethod`).
    NoSuchMethod,
    /// The RPC version is not one we speak (oslo.messaging `UnsupportedVersion`).
    UnsupportedVersion,
    /// Arguments missing or of the wrong type (a `TypeError` where Cinder would raise one).
    BadArguments,
    /// A context or field value that Cinder refuses on receipt (a `ValueError` there).
    InvalidValue,
    /// A versioned object newer than we know (`IncompatibleObjectVersion`).
    IncompatibleObject,
    /// A versioned object of a class that Cinder does not have (`UnsupportedObjectError`).
    UnsupportedObject,
    /// The envelope or JSON could not be read at all.
    MalformedMessage,
    /// The database did not answer, deadlocked, or lost the connection.
    Database,
    /// The broker did not answer or refused.
    Broker,
    /// A call to Ceph missed its deadline, or its worker died.
    DeadlineExceeded,
    /// The operation was cancelled by shutdown; it stays in the journal.
    Cancelled,
    /// Configuration cannot be used; says file, section and key.
    Config,
    /// A defect of Scoria itself. Never caused by input.
    Internal,
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The caller must change something.
    Caller,
    /// The same call may succeed later without anyone changing anything.
    Transient,
    /// It will fail again until an operator acts.
    Permanent,
    /// We stopped it ourselves.
    Cancelled,
}

impl Code {
    /// Retryable or not is decided here and nowhere else. No wildcard: a new code must choose.
    pub fn kind(self) -> Kind {
        match self {
            Code::InvalidInput
            | Code::InvalidVolume
            | Code::InvalidSnapshot
            | Code::InvalidUuid
            | Code::InvalidVolumeAttachMode
            | Code::Invalid
            | Code::VolumeNotFound
            | Code::SnapshotNotFound
            | Code::AttachmentNotFound
            | Code::BackupNotFound
            | Code::InvalidBackup
            | Code::VolumeTypeNotFound
            | Code::ServiceNotFound
            | Code::VolumeAttached
            | Code::Conflict
            | Code::CleanableInUse
            | Code::InvalidReplicationTarget
            | Code::UnableToFailOver
            | Code::OverQuota
            | Code::UnsupportedCombination
            | Code::ImageNotFound
            | Code::ImageNotAuthorized
            | Code::ImageLimitExceeded
            | Code::ImageUnacceptable
            | Code::ImageDoesNotFit
            | Code::ImageConversionNotAllowed
            | Code::ImageSignature
            | Code::InvalidSignatureImage
            | Code::NotSupported
            | Code::NoSuchMethod
            | Code::UnsupportedVersion
            | Code::BadArguments
            | Code::InvalidValue
            | Code::IncompatibleObject
            | Code::UnsupportedObject
            | Code::MalformedMessage => Kind::Caller,
            Code::VolumeBusy
            | Code::SnapshotBusy
            | Code::Database
            | Code::Broker
            | Code::ImageDownload
            | Code::GlanceConnection
            | Code::Compute
            | Code::DeadlineExceeded => Kind::Transient,
            Code::DriverNotInitialized
            | Code::VolumeBackend
            | Code::ExportFailure
            | Code::RemoveExport
            | Code::Replication
            | Code::VolumeMigration
            | Code::MetadataCopy
            | Code::ImageTooBig
            | Code::ImageCopy
            | Code::Glance
            | Code::NotAuthorized
            | Code::KeyManager
            | Code::NoEndpoint
            | Code::Config
            | Code::Internal => Kind::Permanent,
            Code::Cancelled => Kind::Cancelled,
        }
    }
}

/// An error with one text for the user and another for the operator.
#[derive(Debug)]
pub struct Error {
    code: Code,
    user: String,
    detail: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// An error whose `user` text may be shown by cinder-api: it says what, where and what to do.
    pub fn new(code: Code, user: impl Into<String>) -> Self {
        Error { code, user: user.into(), detail: None, source: None }
    }

    /// Adds what only the operator should read.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync + 'static>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// A defect of Scoria: something that no input can cause.
    pub fn internal(what: impl Into<String>) -> Self {
        Error::new(Code::Internal, what)
    }

    /// What went wrong.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Whether trying again can help.
    pub fn kind(&self) -> Kind {
        self.code.kind()
    }

    /// True when the same call may succeed later by itself.
    pub fn is_transient(&self) -> bool {
        self.kind() == Kind::Transient
    }

    /// The sentence for the user of the API.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The sentence for the log: user text, detail and the chain of causes.
    pub fn operator(&self) -> String {
        let mut text = self.user.clone();
        if let Some(detail) = &self.detail {
            text.push_str(": ");
            text.push_str(detail);
        }
        let mut cause: Option<&(dyn StdError + 'static)> = self.source.as_deref().map(|s| s as _);
        while let Some(c) = cause {
            text.push_str(": ");
            text.push_str(&c.to_string());
            cause = c.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.operator())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_text_holds_the_chain_and_user_text_does_not() {
        let e = Error::new(Code::VolumeBackend, "Could not create volume v1")
            .detail("rbd_create on pool volumes")
            .caused_by(std::io::Error::other("errno 110"));
        assert_eq!(e.user(), "Could not create volume v1");
        assert_eq!(e.to_string(), "Could not create volume v1: rbd_create on pool volumes: errno 110");
        assert_eq!(e.kind(), Kind::Permanent);
    }
}
