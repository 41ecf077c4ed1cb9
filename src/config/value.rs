//! Text to typed values by oslo.config's rules (`oslo_config/types.py`).

use super::ini::is_space;

/// `1/0`, `yes/no`, `true/false`, `on/off` in any case; nothing else, not even blanks around it.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err("must be true or false (1/0, yes/no, on/off)".to_owned()),
    }
}

/// Python's `int()` on ASCII digits (sign, single underscores); blank means unset.
pub(super) fn integer(text: &str, min: i64, max: i64) -> Result<Option<i64>, String> {
    let text = text.trim_matches(is_space);
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let plain = digits.split('_').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    if !plain {
        return Err("must be a whole number".to_owned());
    }
    let number: i64 = text.replace('_', "").parse().map_err(|_| "is too large a number".to_owned())?;
    if number < min {
        return Err(format!("must be at least {min}"));
    }
    if number > max {
        return Err(format!("must be at most {max}"));
    }
    Ok(Some(number))
}

/// Comma-separated items; trailing commas are dropped, empty items in the middle are not.
pub(super) fn list(text: &str) -> Vec<String> {
    let text = text.trim_matches(is_space).trim_end_matches(',');
    if text.is_empty() {
        return Vec::new();
    }
    text.split(',').map(|item| item.trim_matches(is_space).to_owned()).collect()
}

/// `key:value,key:value`. The value ends at the next comma, whatever follows its first colon.
/// Errors do not quote the text: `replication_device` is secret upstream.
pub(super) fn dict(text: &str) -> Result<Vec<(String, String)>, String> {
    const FORM: &str = "must be key:value pairs separated by commas";
    let mut pairs: Vec<(String, String)> = Vec::new();
    let text = text.trim_matches(is_space);
    if text.is_empty() {
        return Ok(pairs);
    }
    // oslo joins a part without a colon with the parts after it, so that a *key* may hold a comma
    // (`a,b:c` is the key `a,b`).
    let mut pending = String::new();
    for part in text.split(',') {
        pending.push_str(part);
        let Some((key, value)) = pending.split_once(':') else {
            pending.push(',');
            continue;
        };
        let (key, value) = (key.trim_matches(is_space).to_owned(), value.trim_matches(is_space).to_owned());
        if key.is_empty() {
            return Err(format!("has an empty key; {FORM}"));
        }
        if pairs.iter().any(|(k, _)| *k == key) {
            return Err(format!("has a key twice; {FORM}"));
        }
        pairs.push((key, value));
        pending.clear();
    }
    if pending.is_empty() { Ok(pairs) } else { Err(FORM.to_owned()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn int(text: &str) -> Result<Option<i64>, String> {
        integer(text, i64::MIN, i64::MAX)
    }

    /// Results are those of oslo.config 10.7.0.
    #[test]
    fn scalars() {
        assert_eq!(boolean("YES"), Ok(true));
        assert_eq!(boolean("oFF"), Ok(false));
        for bad in ["", "maybe", " true", "t"] {
            assert!(boolean(bad).is_err(), "{bad:?}");
        }
        assert_eq!(int("1_0"), Ok(Some(10)));
        assert_eq!(int(" +5 "), Ok(Some(5)));
        assert_eq!(int("-3"), Ok(Some(-3)));
        assert_eq!(int("  "), Ok(None));
        for bad in ["0x1", "1.5", "_1", "1__0", "1_", "+", "--1", "9223372036854775808"] {
            assert!(int(bad).is_err(), "{bad:?}");
        }
        assert!(integer("2", 3, 10).is_err());
        assert!(integer("11", 3, 10).is_err());
    }

    #[test]
    fn lists_and_dicts() {
        assert_eq!(list("a,,b,"), ["a", "", "b"]);
        assert_eq!(list(" a , b "), ["a", "b"]);
        assert!(list("").is_empty() && list(" ,, ").is_empty());
        let pairs =
            |t| dict(t).map(|d| d.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "));
        assert_eq!(pairs("a:b,c:d:e, f : g"), Ok("a=b c=d:e f=g".into()));
        assert_eq!(pairs("a,b:c"), Ok("a,b=c".into()));
        assert_eq!(pairs(""), Ok(String::new()));
        for bad in ["a:b,c:d,e", "a:b,a:c", ":c", "abc", "a:b,"] {
            assert!(dict(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            let _ = (boolean(&text), integer(&text, 0, 9), list(&text), dict(&text));
        }
    }
}
