//! Image metadata: keys and values kept with the header.

use std::ffi::{c_char, c_int};

use super::c::rbd_image_t;
use super::image::Image;
use super::{Failure, check, functions, text};

functions! { Functions {
    fn rbd_metadata_set(image: rbd_image_t, key: *const c_char, value: *const c_char) -> c_int;
    fn rbd_metadata_remove(image: rbd_image_t, key: *const c_char) -> c_int;
    fn rbd_metadata_list(image: rbd_image_t, start: *const c_char, max: u64, keys: *mut c_char, key_len: *mut usize, values: *mut c_char, vals_len: *mut usize) -> c_int;
} }

impl Image<'_> {
    /// Sets one key.
    ///
    /// Implements:
    /// ```c
    /// int rbd_metadata_set(rbd_image_t image, const char *key, const char *value);
    /// ```
    pub(crate) fn set_metadata(&self, key: &str, value: &str) -> Result<(), Failure> {
        let call = "rbd_metadata_set";
        let (c_key, c_value) = (text(call, key)?, text(call, value)?);
        // SAFETY: open image and valid strings.
        let result =
            unsafe { (self.api().metadata.rbd_metadata_set)(self.handle, c_key.as_ptr(), c_value.as_ptr()) };
        check(call, || format!("{}, key {key}", self.path()), result)?;
        Ok(())
    }

    /// Removes one key.
    ///
    /// Implements:
    /// ```c
    /// int rbd_metadata_remove(rbd_image_t image, const char *key);
    /// ```
    pub(crate) fn remove_metadata(&self, key: &str) -> Result<(), Failure> {
        let call = "rbd_metadata_remove";
        let c_key = text(call, key)?;
        // SAFETY: open image and valid string.
        let result = unsafe { (self.api().metadata.rbd_metadata_remove)(self.handle, c_key.as_ptr()) };
        check(call, || format!("{}, key {key}", self.path()), result)?;
        Ok(())
    }

    /// All keys and values, ordered by key.
    ///
    /// Implements:
    /// ```c
    /// int rbd_metadata_list(rbd_image_t image, const char *start, uint64_t max, char *keys, size_t *key_len, char *values, size_t *vals_len);
    /// ```
    pub(crate) fn metadata(&self) -> Result<Vec<(String, String)>, Failure> {
        let call = "rbd_metadata_list";
        let start = text(call, "")?;
        let (mut key_capacity, mut value_capacity) = (4096, 4096);
        loop {
            let (mut keys, mut values) = (vec![0u8; key_capacity], vec![0u8; value_capacity]);
            let (mut key_length, mut value_length) = (key_capacity, value_capacity);
            // SAFETY: both buffers are as long as said; 0: no limit on the number of entries.
            let result = unsafe {
                (self.api().metadata.rbd_metadata_list)(
                    self.handle,
                    start.as_ptr(),
                    0,
                    keys.as_mut_ptr().cast(),
                    &mut key_length,
                    values.as_mut_ptr().cast(),
                    &mut value_length,
                )
            };
            if result == -libc::ERANGE {
                // Twice what is needed: entries may be added between two attempts.
                key_capacity = key_capacity.max(key_length) * 2;
                value_capacity = value_capacity.max(value_length) * 2;
                continue;
            }
            check(call, || self.path(), result)?;
            keys.truncate(key_length);
            values.truncate(value_length);
            return Ok(strings(&keys).into_iter().zip(strings(&values)).collect());
        }
    }
}

/// Strings that are each ended by NUL.
fn strings(buffer: &[u8]) -> Vec<String> {
    let mut parts: Vec<_> =
        buffer.split(|b| *b == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect();
    parts.pop();
    parts
}

#[cfg(test)]
mod tests {
    use super::strings;

    #[test]
    fn an_empty_value_keeps_its_place() {
        assert_eq!(strings(b"a\0\0c\0"), ["a", "", "c"]);
        assert!(strings(b"").is_empty());
    }
}
