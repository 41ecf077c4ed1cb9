//! Whether the bytes of an image are those that somebody has signed.
//!
//! Its owner writes four properties to an image: the signature, the hash that was signed, the kind of key, and the
//! id of the certificate in the key manager. What they may say is set by cursive, which Nova and Glance use too:
//! RSA-PSS with the longest salt that fits, DSA, or ECDSA on one of two curves. As there, the certificate counts
//! because it is in the key manager: nobody asks who has issued it, or whether it has expired.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rsa::pkcs1::der::Decode;
use rsa::signature::hazmat::PrehashVerifier;
use rsa::{BigUint, pss};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::digest::{DynDigest, FixedOutputReset};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::referenced::OwnedToRef;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::Image;

const SIGNATURE: &str = "img_signature";
const HASH: &str = "img_signature_hash_method";
const KEY_TYPE: &str = "img_signature_key_type";
const CERTIFICATE: &str = "img_signature_certificate_uuid";

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const SECP521R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
/// Bits of the largest RSA key that is worked with.
const LARGEST_RSA: usize = 16384;
/// The same of a DSA key's two primes. Whoever owns an image chooses its certificate, and with numbers of any
/// size already the first look at a key would take hours.
const LARGEST_DSA: (usize, usize) = (10_000, 256);
/// A curve takes no hash that is shorter than half of its numbers; zeros in front change nothing.
const LONGEST_HASH: usize = 64;

/// What an image says of its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Nothing.
    None,
    /// Not all that there should be.
    Incomplete,
    /// All.
    Signed {
        /// In base64.
        signature: String,
        /// `SHA-256` …
        hash: String,
        /// `RSA-PSS` …
        key_type: String,
        /// Of the certificate, in the key manager.
        certificate: String,
    },
}

impl Claim {
    /// Of an image.
    pub fn of(image: &Image) -> Claim {
        let text = |name: &str| {
            let value = image.properties.get(name).filter(|value| !value.is_null())?;
            Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        match (text(SIGNATURE), text(HASH), text(KEY_TYPE), text(CERTIFICATE)) {
            (None, None, None, None) => Claim::None,
            (Some(signature), Some(hash), Some(key_type), Some(certificate)) => {
                Claim::Signed { signature, hash, key_type, certificate }
            }
            _ => Claim::Incomplete,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn named(name: &str) -> Option<Hash> {
        Some(match name {
            "SHA-224" => Hash::Sha224,
            "SHA-256" => Hash::Sha256,
            "SHA-384" => Hash::Sha384,
            "SHA-512" => Hash::Sha512,
            _ => return None,
        })
    }

    fn begin(self) -> Box<dyn DynDigest + Send> {
        match self {
            Hash::Sha224 => Box::new(Sha224::default()),
            Hash::Sha256 => Box::new(Sha256::default()),
            Hash::Sha384 => Box::new(Sha384::default()),
            Hash::Sha512 => Box::new(Sha512::default()),
        }
    }
}

#[derive(Debug, Clone)]
enum Key {
    Rsa(Box<rsa::RsaPublicKey>),
    Dsa(Box<dsa::VerifyingKey>),
    P384(Box<p384::ecdsa::VerifyingKey>),
    P521(Box<p521::PublicKey>),
}

/// Knows a signature and the key that must have made it.
#[derive(Debug, Clone)]
pub struct Verifier {
    signature: Vec<u8>,
    hash: Hash,
    key: Key,
}

impl Verifier {
    /// Of a signature, with the certificate that it names, in PEM or DER.
    ///
    /// # Errors
    /// Why no such signature can be verified.
    pub fn new(signature: &str, hash: &str, key_type: &str, certificate: &[u8]) -> Result<Verifier, String> {
        let digits: String = signature.split_whitespace().collect();
        let signature = STANDARD.decode(digits).map_err(|_| "the signature is not in base64")?;
        if signature.is_empty() {
            return Err("the signature is empty".to_owned());
        }
        let hash = Hash::named(hash).ok_or_else(|| format!("invalid signature hash method: {hash}"))?;
        let key = Key::of(key_type, &key_info(certificate)?)?;
        Ok(Verifier { signature, hash, key })
    }

    /// Begins to read an image.
    pub fn begin(&self) -> Check {
        Check { state: self.hash.begin(), verifier: self.clone() }
    }

    fn verify(&self, hash: &[u8]) -> bool {
        let verified = match &self.key {
            Key::Rsa(key) => self.verify_rsa(key, hash),
            Key::Dsa(key) => dsa::Signature::from_der(&self.signature)
                .ok()
                .and_then(|signature| key.verify_prehash(hash, &signature).ok()),
            Key::P384(key) => p384::ecdsa::Signature::from_der(&self.signature)
                .ok()
                .and_then(|signature| key.verify_prehash(hash, &signature).ok()),
            Key::P521(key) => p521::ecdsa::DerSignature::try_from(self.signature.as_slice())
                .ok()
                .and_then(|signature| p521::ecdsa::Signature::try_from(signature).ok())
                .and_then(|signature| {
                    let key = p521::ecdsa::VerifyingKey::from_affine(*key.as_affine()).ok()?;
                    let mut padded = [0; LONGEST_HASH];
                    padded.get_mut(LONGEST_HASH.checked_sub(hash.len())?..)?.copy_from_slice(hash);
                    key.verify_prehash(&padded, &signature).ok()
                }),
        };
        verified.is_some()
    }

    fn verify_rsa(&self, key: &rsa::RsaPublicKey, hash: &[u8]) -> Option<()> {
        match self.hash {
            Hash::Sha224 => verify_pss::<Sha224>(key, hash, &self.signature),
            Hash::Sha256 => verify_pss::<Sha256>(key, hash, &self.signature),
            Hash::Sha384 => verify_pss::<Sha384>(key, hash, &self.signature),
            Hash::Sha512 => verify_pss::<Sha512>(key, hash, &self.signature),
        }
    }
}

/// With a salt that fills what the key leaves room for.
fn verify_pss<D: Digest + FixedOutputReset>(
    key: &rsa::RsaPublicKey,
    hash: &[u8],
    signature: &[u8],
) -> Option<()> {
    use rsa::traits::PublicKeyParts;
    let encoded = (key.n().bits() + 6) / 8;
    let salt = encoded.checked_sub(hash.len() + 2)?;
    let key = pss::VerifyingKey::<D>::new_with_salt_len(key.clone(), salt);
    key.verify_prehash(hash, &pss::Signature::try_from(signature).ok()?).ok()
}

impl Key {
    fn of(key_type: &str, info: &SubjectPublicKeyInfoOwned) -> Result<Key, String> {
        let other = || format!("the certificate has no key of the type {key_type}");
        let bits = info.subject_public_key.as_bytes().ok_or_else(other)?;
        let curve = || {
            let parameters = info.algorithm.parameters.as_ref().filter(|_| info.algorithm.oid == EC)?;
            parameters.decode_as::<ObjectIdentifier>().ok()
        };
        match key_type {
            "RSA-PSS" if info.algorithm.oid == RSA => {
                let found = rsa::pkcs1::RsaPublicKey::from_der(bits).map_err(|_| other())?;
                let number = |n: rsa::pkcs1::UintRef<'_>| BigUint::from_bytes_be(n.as_bytes());
                let (n, e) = (number(found.modulus), number(found.public_exponent));
                let key = rsa::RsaPublicKey::new_with_max_size(n, e, LARGEST_RSA).map_err(|_| other())?;
                Ok(Key::Rsa(Box::new(key)))
            }
            "DSA" => {
                let sizes = info.algorithm.parameters.as_ref();
                let sizes = sizes.and_then(|p| p.decode_as::<dsa::Components>().ok()).ok_or_else(other)?;
                if sizes.p().bits() > LARGEST_DSA.0 || sizes.q().bits() > LARGEST_DSA.1 {
                    return Err("the certificate's DSA key is larger than any in use".to_owned());
                }
                let key = dsa::VerifyingKey::try_from(info.owned_to_ref()).map_err(|_| other())?;
                Ok(Key::Dsa(Box::new(key)))
            }
            "ECC_SECP384R1" if curve() == Some(SECP384R1) => {
                let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(bits).map_err(|_| other())?;
                Ok(Key::P384(Box::new(key)))
            }
            "ECC_SECP521R1" if curve() == Some(SECP521R1) => {
                Ok(Key::P521(Box::new(p521::PublicKey::from_sec1_bytes(bits).map_err(|_| other())?)))
            }
            "RSA-PSS" | "ECC_SECP384R1" | "ECC_SECP521R1" => Err(other()),
            _ => Err(format!("invalid signature key type: {key_type}")),
        }
    }
}

/// The public key in a certificate.
fn key_info(certificate: &[u8]) -> Result<SubjectPublicKeyInfoOwned, String> {
    let der = CertificateDer::from_pem_slice(certificate)
        .map_or_else(|_| certificate.to_vec(), |certificate| certificate.to_vec());
    let certificate = Certificate::from_der(&der).map_err(|e| format!("it is no X.509 certificate: {e}"))?;
    Ok(certificate.tbs_certificate.subject_public_key_info)
}

/// An image that is being read.
pub struct Check {
    state: Box<dyn DynDigest + Send>,
    verifier: Verifier,
}

impl Check {
    /// The next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// The end: true when just these bytes were signed.
    pub fn verified(self) -> bool {
        self.verifier.verify(&self.state.finalize())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    /// `openssl`'s signatures of [`message`]: certificate, key type, hash method, base64. The certificates have
    /// expired.
    const SIGNATURES: &str = include_str!("../testdata/signatures/signatures.txt");

    fn message() -> Vec<u8> {
        b"the bytes of an image\n".repeat(1000)
    }

    fn certificate(name: &str) -> &'static [u8] {
        match name {
            "rsa" => include_bytes!("../testdata/signatures/rsa.pem"),
            "rsa2041" => include_bytes!("../testdata/signatures/rsa2041.pem"),
            "dsa" => include_bytes!("../testdata/signatures/dsa.pem"),
            "p256" => include_bytes!("../testdata/signatures/p256.pem"),
            "p384" => include_bytes!("../testdata/signatures/p384.pem"),
            "p521" => include_bytes!("../testdata/signatures/p521.pem"),
            other => unreachable!("{other}"),
        }
    }

    fn check(verifier: &Verifier, bytes: &[u8]) -> bool {
        let mut check = verifier.begin();
        bytes.chunks(999).for_each(|part| check.add(part));
        check.verified()
    }

    #[test]
    fn what_was_signed_is_told_from_anything_else() {
        let mut seen = 0;
        for line in SIGNATURES.lines() {
            let [name, key_type, hash, signature] =
                <[&str; 4]>::try_from(line.split(' ').collect::<Vec<_>>()).unwrap();
            if name == "p256" {
                assert!(Verifier::new(signature, hash, key_type, certificate(name)).is_err());
                continue;
            }
            if hash == "short-salt" {
                let short = Verifier::new(signature, "SHA-256", key_type, certificate(name)).unwrap();
                assert!(!check(&short, &message()), "cursive wants the longest salt");
                continue;
            }
            let verifier = Verifier::new(signature, hash, key_type, certificate(name)).unwrap();
            assert!(check(&verifier, &message()), "{name} {hash}");
            let mut changed = message();
            changed[21_000] ^= 1;
            for bad in [changed.as_slice(), &message()[1..], b""] {
                assert!(!check(&verifier, bad), "{name} {hash}");
            }
            // In DER, as castellan hands it out.
            let der = CertificateDer::from_pem_slice(certificate(name)).unwrap();
            assert!(check(&Verifier::new(signature, hash, key_type, &der).unwrap(), &message()));
            seen += 1;
        }
        assert_eq!(seen, 20);
    }

    #[test]
    fn what_makes_no_sense_makes_no_verifier() {
        let good = SIGNATURES.lines().next().unwrap().split(' ').next_back().unwrap();
        for (signature, hash, key_type, name) in [
            ("not base64!", "SHA-256", "RSA-PSS", "rsa"),
            ("", "SHA-256", "RSA-PSS", "rsa"),
            (good, "SHA-1", "RSA-PSS", "rsa"),
            (good, "SHA-256", "RSA", "rsa"),
            (good, "SHA-256", "RSA-PSS", "p384"),
            (good, "SHA-256", "DSA", "rsa"),
            (good, "SHA-256", "ECC_SECP384R1", "p521"),
            (good, "SHA-256", "ECC_SECT571K1", "p521"),
        ] {
            assert!(
                Verifier::new(signature, hash, key_type, certificate(name)).is_err(),
                "{hash} {key_type}"
            );
        }
        assert!(Verifier::new(good, "SHA-256", "RSA-PSS", b"no certificate").is_err());
        // A signature of another length, or of another kind, is a wrong one.
        for (key_type, name) in [("RSA-PSS", "rsa2041"), ("DSA", "dsa"), ("ECC_SECP521R1", "p521")] {
            let wrong = Verifier::new("AAAA", "SHA-256", key_type, certificate(name)).unwrap();
            assert!(!check(&wrong, &message()));
        }
    }

    #[test]
    fn a_key_with_enormous_numbers_is_not_even_looked_at() {
        use x509_cert::der::asn1::BitString;
        use x509_cert::der::{Any, Encode};
        use x509_cert::spki::AlgorithmIdentifierOwned;

        let power = |bits: usize| BigUint::from(1u8) << bits;
        for (p, q) in [(10_001, 160), (2048, 9_000)] {
            let sizes = dsa::Components::from_components(power(p), power(q), BigUint::from(2u8)).unwrap();
            let parameters = Some(Any::from_der(&sizes.to_der().unwrap()).unwrap());
            let algorithm = AlgorithmIdentifierOwned { oid: dsa::OID, parameters };
            // y = 2
            let subject_public_key = BitString::from_bytes(&[2, 1, 2]).unwrap();
            let why = Key::of("DSA", &SubjectPublicKeyInfoOwned { algorithm, subject_public_key });
            assert!(why.unwrap_err().contains("larger than any in use"), "{p} {q}");
        }
    }

    #[test]
    fn an_image_is_signed_with_four_properties() {
        let image = |fields: serde_json::Value| Image {
            properties: fields.as_object().unwrap().clone(),
            ..Image::default()
        };
        let whole = json!({"img_signature": "s", "img_signature_hash_method": "h",
            "img_signature_key_type": "k", "img_signature_certificate_uuid": "c"});
        let expected = Claim::Signed {
            signature: "s".into(),
            hash: "h".into(),
            key_type: "k".into(),
            certificate: "c".into(),
        };
        assert_eq!(Claim::of(&image(whole.clone())), expected);
        assert_eq!(Claim::of(&image(json!({"img_signature": null, "os": "x"}))), Claim::None);
        for part in [SIGNATURE, HASH, KEY_TYPE, CERTIFICATE] {
            let mut fields = whole.clone();
            fields[part] = serde_json::Value::Null;
            assert_eq!(Claim::of(&image(fields)), Claim::Incomplete);
        }
    }
}
