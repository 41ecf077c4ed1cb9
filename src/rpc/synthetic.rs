//! Requests that the service sends to itself: work that it found unfinished and takes up as if it had just
//! been asked to. They are journalled like any other, so that a crash cannot lose them a second time.

use serde_json::json;

use crate::backend::peers::BackupRequest;
use crate::context::RequestContext;
use crate::error::Result;
use crate::model::{Backup, Volume};
use crate::rpc::envelope::{self, CONTEXT_PREFIX};
use crate::rpc::objects::{backup_object, volume_object};

/// The journal's text of a `delete_volume` with cascade; [`crate::rpc::Call::from_journal`] reads it.
///
/// # Errors
/// `Internal` when the volume cannot be written as an object.
pub fn delete_volume(context: &RequestContext, unique_id: &str, volume: &Volume) -> Result<String> {
    let arguments =
        json!({"volume": volume_object(volume)?.to_value(), "unmanage_only": false, "cascade": true});
    let mut inner = envelope::cast(context, "delete_volume", "3.0", arguments);
    inner.insert("_unique_id".to_owned(), unique_id.into());
    inner.remove(&format!("{CONTEXT_PREFIX}auth_token"));
    Ok(serde_json::Value::Object(inner).to_string())
}

/// The journal's text of what the backup service asks of itself.
///
/// # Errors
/// `Internal` when the backup cannot be written as an object.
pub fn of_backup(
    context: &RequestContext,
    unique_id: &str,
    asked: BackupRequest,
    backup: &Backup,
) -> Result<String> {
    let method = match asked {
        BackupRequest::Create => "create_backup",
        BackupRequest::Delete => "delete_backup",
    };
    let arguments = json!({"backup": backup_object(backup)?.to_value()});
    let mut inner = envelope::cast(context, method, "2.0", arguments);
    inner.insert("_unique_id".to_owned(), unique_id.into());
    inner.remove(&format!("{CONTEXT_PREFIX}auth_token"));
    Ok(serde_json::Value::Object(inner).to_string())
}

/// The journal's text of cinder-backup's `delete_backup`.
///
/// # Errors
/// `Internal` when the backup cannot be written as an object.
pub fn delete_backup(context: &RequestContext, unique_id: &str, backup: &Backup) -> Result<String> {
    of_backup(context, unique_id, BackupRequest::Delete, backup)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::rpc::method::BackupCall;
    use crate::rpc::{Call, Method};

    #[test]
    fn a_synthetic_deletion_of_a_backup_is_the_backup_services() {
        let backup = Backup {
            id: "b1".into(),
            volume_id: "v1".into(),
            status: "deleting".into(),
            ..Backup::default()
        };
        let text = delete_backup(&RequestContext::admin(), "at-start-b1", &backup).unwrap();
        let call = Call::from_journal(&text).unwrap();
        assert_eq!(
            (call.name, call.version, call.unique_id.as_str()),
            ("delete_backup", (2, 0), "at-start-b1")
        );
        let Method::Backup(call) = call.method else { panic!("{}", call.name) };
        assert!(
            matches!(*call, BackupCall::Delete { backup } if backup.id == "b1" && backup.status == "deleting")
        );
    }

    #[test]
    fn a_synthetic_deletion_is_read_like_a_real_one_and_holds_no_token() {
        let volume = Volume {
            id: "6f1c0f5e-0000-4000-8000-000000000001".into(),
            name_id: Some("6f1c0f5e-0000-4000-8000-000000000002".into()),
            host: Some("node1@ceph#pool".into()),
            status: "deleting".into(),
            volume_type_id: "3f7d81fd-3cb6-4e1a-ab62-35515dfd0a42".into(),
            size: 2,
            use_quota: true,
            ..Volume::default()
        };
        let mut fields = RequestContext::admin().to_fields();
        fields.insert("auth_token".into(), "s3cret".into());
        let context = RequestContext::from_fields(fields);
        let text = delete_volume(&context, "cleanup-7-3", &volume).unwrap();
        assert!(!text.contains("s3cret") && !text.contains("auth_token"));
        let call = Call::from_journal(&text).unwrap();
        assert_eq!(call.unique_id, "cleanup-7-3");
        assert!(call.journaled && call.reply.is_none() && call.context.is_admin);
        assert_eq!(call.context.request_id, context.request_id);
        let Method::DeleteVolume(request) = call.method else { panic!("{}", call.name) };
        assert_eq!((request.cascade, request.unmanage_only), (true, false));
        assert_eq!(request.volume.volume, volume);
    }
}
