//! Whether the bytes that arrived are those that Glance has taken in.
//!
//! As glanceclient: the hash that the image names (`os_hash_algo`), or else its MD5, or that of the answer's
//! `Content-MD5`. An image with none of them is taken as it comes; one whose algorithm nobody here knows is
//! refused.

use sha2::digest::DynDigest;

use super::Image;

/// A checksum that is being made.
pub(super) struct Checksum {
    state: Box<dyn DynDigest + Send>,
    name: String,
    expected: String,
}

impl Checksum {
    /// What `image` is to be compared with; `None`: nothing.
    ///
    /// # Errors
    /// The name of an algorithm that is not known.
    pub(super) fn of(image: &Image, content_md5: Option<&str>) -> Result<Option<Checksum>, String> {
        let md5 = image.checksum.as_deref().or(content_md5);
        let (name, expected) = match (&image.hash, md5) {
            (Some((name, value)), _) => (name.to_lowercase(), value.as_str()),
            (None, Some(value)) => ("md5".to_owned(), value),
            (None, None) => return Ok(None),
        };
        let state: Box<dyn DynDigest + Send> = match name.as_str() {
            "md5" => Box::new(md5::Md5::default()),
            "sha1" => Box::new(sha1::Sha1::default()),
            "sha224" => Box::new(sha2::Sha224::default()),
            "sha256" => Box::new(sha2::Sha256::default()),
            "sha384" => Box::new(sha2::Sha384::default()),
            "sha512" => Box::new(sha2::Sha512::default()),
            _ => return Err(name),
        };
        Ok(Some(Checksum { state, name, expected: expected.to_lowercase() }))
    }

    /// The next bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
    }

    /// The end.
    ///
    /// # Errors
    /// A sentence when it is another one.
    pub(super) fn check(self) -> Result<(), String> {
        let found: String = self.state.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found == self.expected {
            return Ok(());
        }
        Err(format!("its {} is {found}, not {}", self.name, self.expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(hash: Option<(&str, &str)>, checksum: Option<&str>) -> Image {
        Image {
            hash: hash.map(|(a, b)| (a.to_owned(), b.to_owned())),
            checksum: checksum.map(str::to_owned),
            ..Image::default()
        }
    }

    const MD5: &str = "900150983cd24fb0d6963f7d28e17f72";
    const SHA256: &str = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";

    #[test]
    fn the_best_known_sum_decides() {
        for (image, content_md5, good) in [
            (image(Some(("sha256", SHA256)), Some("wrong")), None, true),
            (image(Some(("sha256", "00")), Some(MD5)), None, false),
            (image(None, Some(MD5)), Some("wrong"), true),
            (image(None, None), Some(MD5), true),
            (image(None, None), Some("00"), false),
        ] {
            let mut sum = Checksum::of(&image, content_md5).unwrap().unwrap();
            sum.add(b"a");
            sum.add(b"bc");
            assert_eq!(sum.check().is_ok(), good, "{image:?}");
        }
        assert!(Checksum::of(&image(None, None), None).unwrap().is_none());
        assert_eq!(Checksum::of(&image(Some(("rot13", "x")), Some(MD5)), None).err().unwrap(), "rot13");
    }
}
