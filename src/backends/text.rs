//! The text of a backend's file: made from options, and changed without a loss of what somebody has written into it.

use super::Options;
use crate::error::{Code, Error, Result};

/// What a new file begins with.
const HEAD: &str =
    "# Made by scoria-manage or over RPC; may be edited: an edit is noticed, checked and applied.\n";

/// The text of a new file.
///
/// # Errors
/// `InvalidInput` for what cannot stand in a file.
pub(super) fn new(name: &str, options: &Options) -> Result<String> {
    let mut text = format!("{HEAD}[{name}]\n");
    let given = |option: &str| options.get(option).is_some_and(|values| !values.is_empty());
    if !given("volume_driver") {
        text.push_str("volume_driver = cinder.volume.drivers.rbd.RBDDriver\n");
    }
    if !given("volume_backend_name") {
        // The name is the backend's everywhere, its pool in host@backend#pool included.
        text.push_str(&format!("volume_backend_name = {name}\n"));
    }
    text.push_str(&lines(options)?);
    Ok(text)
}

/// The text of a file with some options changed: their lines go, with what continues them, and the new ones stand at the
/// end of the section. Everything else stays as it is.
///
/// # Errors
/// As [`new`].
pub(super) fn changed(old: &str, options: &Options) -> Result<String> {
    let mut kept = Vec::new();
    let mut dropping = false;
    for line in old.lines() {
        let continues = line.starts_with([' ', '\t']) && !line.trim().is_empty();
        if continues && dropping {
            continue;
        }
        dropping = !line.starts_with(['#', ';', '[', ' ', '\t'])
            && line.split(['=', ':']).next().is_some_and(|key| options.contains_key(key.trim()));
        if !dropping {
            kept.push(line);
        }
    }
    while kept.last().is_some_and(|line| line.trim().is_empty()) {
        kept.pop();
    }
    Ok(format!("{}\n{}", kept.join("\n"), lines(options)?))
}

/// The text of a file with its section renamed. `volume_backend_name` stays: volume types lead to the backend by it, and
/// the hosts of its volumes end in it.
pub(super) fn renamed(old: &str, name: &str, new_name: &str) -> String {
    let (from, to) = (format!("[{name}]"), format!("[{new_name}]"));
    let mut text = String::with_capacity(old.len() + 16);
    for line in old.lines() {
        text.push_str(if line.trim_end() == from { &to } else { line });
        text.push('\n');
    }
    text
}

fn lines(options: &Options) -> Result<String> {
    let mut text = String::new();
    for (option, values) in options {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if option.is_empty() || !option.chars().all(plain) {
            return Err(Error::new(
                Code::InvalidInput,
                format!("`{}` cannot be the name of an option", option.escape_debug()),
            ));
        }
        for value in values {
            if value.chars().any(char::is_control) {
                return Err(Error::new(
                    Code::InvalidInput,
                    format!("The value of {option} has a line break or another control character"),
                ));
            }
            text.push_str(&format!("{option} = {value}\n"));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &[&str])]) -> Options {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.iter().map(|v| (*v).to_owned()).collect())).collect()
    }

    #[test]
    fn a_new_file_has_driver_and_name_unless_they_are_given() {
        let text = new("fast", &options(&[("rbd_pool", &["fast"]), ("replication_device", &["a:1", "a:2"])]))
            .unwrap();
        assert!(text.ends_with(
            "[fast]\nvolume_driver = cinder.volume.drivers.rbd.RBDDriver\nvolume_backend_name = fast\nrbd_pool = fast\n\
             replication_device = a:1\nreplication_device = a:2\n"
        ));
        let named = new("fast", &options(&[("volume_backend_name", &["x"])])).unwrap();
        assert_eq!(named.matches("volume_backend_name").count(), 1);
        for bad in
            [options(&[("a b", &["x"])]), options(&[("a", &["x\n[DEFAULT]"])]), options(&[("", &["x"])])]
        {
            assert_eq!(new("fast", &bad).unwrap_err().code(), Code::InvalidInput);
        }
    }

    #[test]
    fn a_change_leaves_the_rest_as_somebody_has_written_it() {
        let old = "# ours\n[fast]\nrbd_pool = fast\n# why\nfilter_function = a\n   and b\nreserved_percentage: 5\n\n";
        let text = changed(
            old,
            &options(&[("filter_function", &["c"]), ("reserved_percentage", &[]), ("rbd_user", &["u"])]),
        )
        .unwrap();
        assert_eq!(text, "# ours\n[fast]\nrbd_pool = fast\n# why\nfilter_function = c\nrbd_user = u\n");
        assert_eq!(
            renamed("[fast]\nvolume_backend_name=fast\nrbd_pool = fast\n", "fast", "slow"),
            "[slow]\nvolume_backend_name=fast\nrbd_pool = fast\n"
        );
    }
}
