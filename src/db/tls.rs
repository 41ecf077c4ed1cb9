//! Client keys as they are found in the field.
//!
//! mysql_async with rustls reads only PKCS#1 RSA keys (`BEGIN RSA PRIVATE KEY`); `openssl` has written
//! PKCS#8 (`BEGIN PRIVATE KEY`) for years. A PKCS#8 RSA key is a PKCS#1 key in an envelope, which is taken
//! off here.

use std::path::Path;

/// rsaEncryption, 1.2.840.113549.1.1.1, with its tag and length.
const RSA_ENCRYPTION: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// A private key in a form that mysql_async takes: the file's own text when it holds a PKCS#1 key, else
/// DER.
///
/// # Errors
/// A sentence with the file's name; never its content.
pub(super) async fn client_key(path: &Path) -> Result<Vec<u8>, String> {
    let text = tokio::fs::read(path).await.map_err(|e| format!("ssl_key {}: {e}", path.display()))?;
    let Ok(pem) = std::str::from_utf8(&text) else {
        return Ok(text);
    };
    if pem.contains("-----BEGIN RSA PRIVATE KEY-----") {
        return Ok(text);
    }
    let body = pem
        .split_once("-----BEGIN PRIVATE KEY-----")
        .and_then(|(_, rest)| rest.split_once("-----END PRIVATE KEY-----"))
        .map(|(body, _)| body);
    body.and_then(base64).and_then(|der| pkcs1_of(&der).map(<[u8]>::to_vec)).ok_or_else(|| {
        format!(
            "ssl_key {}: only RSA keys without a passphrase are supported (PEM, PKCS#1 or PKCS#8)",
            path.display()
        )
    })
}

/// The RSAPrivateKey inside `PrivateKeyInfo { version, algorithm, privateKey OCTET STRING }`.
fn pkcs1_of(der: &[u8]) -> Option<&[u8]> {
    let (content, _) = element(der, 0x30)?;
    let (_version, rest) = element(content, 0x02)?;
    let (algorithm, rest) = element(rest, 0x30)?;
    if !algorithm.starts_with(&RSA_ENCRYPTION) {
        return None;
    }
    element(rest, 0x04).map(|(key, _)| key)
}

/// Content of a DER element with this tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.split_first()?;
    let (&length, rest) = rest.split_first()?;
    if first != tag {
        return None;
    }
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        if bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0, |sum, b| sum << 8 | usize::from(*b)), rest)
    };
    rest.split_at_checked(length)
}

/// Decodes standard base64 with line breaks; `None` when it is not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.bytes().filter(|c| !c.is_ascii_whitespace()) {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A PKCS#8 envelope around `key`.
    fn pkcs8(oid: &[u8], key: &[u8]) -> Vec<u8> {
        let mut algorithm = oid.to_vec();
        algorithm.extend([0x05, 0x00]);
        let mut content = vec![0x02, 0x01, 0x00, 0x30, u8::try_from(algorithm.len()).unwrap()];
        content.extend(algorithm);
        content.extend([0x04, 0x82]);
        content.extend(u16::try_from(key.len()).unwrap().to_be_bytes());
        content.extend(key);
        let mut der = vec![0x30, 0x82];
        der.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        der.extend(content);
        der
    }

    #[test]
    fn an_rsa_key_is_taken_out_of_its_envelope_and_others_are_refused() {
        let key = vec![7; 600];
        let der = pkcs8(&RSA_ENCRYPTION, &key);
        assert_eq!(pkcs1_of(&der), Some(key.as_slice()));
        let ec = pkcs8(&[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01], &key);
        assert_eq!(pkcs1_of(&ec), None);
        for end in 0..der.len() {
            assert_eq!(pkcs1_of(&der[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn base64_is_decoded_across_lines() {
        assert_eq!(base64("TWFu\nTWE=\n").as_deref(), Some(b"ManMa".as_slice()));
        assert_eq!(base64("T!"), None);
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_used_is_named_and_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
        let error = client_key(file.path()).await.unwrap_err();
        assert!(error.contains("ssl_key") && !error.contains("c2VjcmV0"), "{error}");
        std::fs::write(file.path(), "-----BEGIN RSA PRIVATE KEY-----\nx").unwrap();
        assert!(client_key(file.path()).await.unwrap().starts_with(b"-----BEGIN RSA"));
    }
}
