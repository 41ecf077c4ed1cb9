//! Marks of backends (`host_cluster_id`): what one may be called.

use crate::config::is_label;
use crate::db::label::LabelRow;
use crate::error::{Code, Error, Result};

/// A mark as it is to be: with an id of its own when none is chosen, and a name.
///
/// # Errors
/// `InvalidInput` for an id that cannot be part of a host, or a name that is too long.
pub fn new_label(id: Option<String>, name: Option<String>, description: Option<String>) -> Result<LabelRow> {
    let id = id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    if !is_label(&id) {
        return Err(Error::new(
            Code::InvalidInput,
            format!(
                "`{}` cannot be a cluster label: it has 1 to 64 letters, digits, `.`, `_` or `-`, since it becomes part \
                 of the hosts of services",
                id.escape_debug()
            ),
        ));
    }
    let name = name.unwrap_or_else(|| id.clone());
    if name.is_empty() || name.chars().count() > 255 || name.chars().any(char::is_control) {
        return Err(Error::new(Code::InvalidInput, "The name of a cluster label has 1 to 255 characters"));
    }
    Ok(LabelRow { id, name, description })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_has_an_id_that_can_stand_in_a_host_and_a_name() {
        let chosen = new_label(Some("row-7".into()), None, None).unwrap();
        assert_eq!((chosen.id.as_str(), chosen.name.as_str()), ("row-7", "row-7"));
        assert_eq!(new_label(None, Some("row seven".into()), None).unwrap().id.len(), 36);
        for bad in ["", "a!b", "a@b", "a b", "a#b"] {
            assert_eq!(new_label(Some(bad.into()), None, None).unwrap_err().code(), Code::InvalidInput);
        }
        assert!(new_label(None, Some("x".repeat(256)), None).is_err());
    }
}
