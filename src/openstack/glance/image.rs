//! An image as Glance describes it, and as Cinder speaks of it.
//!
//! Glance mixes its own properties with those that somebody has added; Cinder keeps the latter apart
//! (`properties`), because they become the volume's image metadata. Which are Glance's own is fixed by its API:
//! nobody can add a property with such a name.

use serde_json::{Map, Value};

use crate::context::RequestContext;
use crate::error::{Code, Error, Result};

/// Glance's own properties (`is_base` in its schema).
const BASE: &[&str] = &[
    "checksum",
    "container_format",
    "created_at",
    "direct_url",
    "disk_format",
    "file",
    "id",
    "locations",
    "min_disk",
    "min_ram",
    "name",
    "os_hash_algo",
    "os_hash_value",
    "os_hidden",
    "owner",
    "protected",
    "schema",
    "self",
    "size",
    "status",
    "stores",
    "tags",
    "updated_at",
    "virtual_size",
    "visibility",
];

/// Those that only Glance writes, and that Cinder's image metadata may carry.
const READ_ONLY: &[&str] = &["status", "updated_at", "created_at", "deleted_at", "id"];

/// Properties that are JSON inside a text.
const NESTED: &[&str] = &["block_device_mapping", "mappings"];

/// An image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Image {
    /// Id.
    pub id: String,
    /// Name.
    pub name: Option<String>,
    /// `queued`, `saving`, `active` …
    pub status: String,
    /// Bytes of data, when there are any.
    pub size: Option<u64>,
    /// Bytes of the disk inside, when Glance knows.
    pub virtual_size: Option<u64>,
    /// `raw`, `qcow2` …
    pub disk_format: Option<String>,
    /// `bare`, `compressed` …
    pub container_format: Option<String>,
    /// GiB that a volume made of it must have.
    pub min_disk: i64,
    /// MiB of memory that a server must have.
    pub min_ram: i64,
    /// MD5 of the data.
    pub checksum: Option<String>,
    /// Name and value of a better checksum.
    pub hash: Option<(String, String)>,
    /// `public`, `private`, `shared`, `community`.
    pub visibility: String,
    /// Project that it belongs to.
    pub owner: Option<String>,
    /// Whether it can be deleted.
    pub protected: bool,
    /// Properties that were added to it. `block_device_mapping` and `mappings` are what their text says.
    pub properties: Map<String, Value>,
    /// Glance's own properties, as they came.
    pub base: Map<String, Value>,
}

impl Image {
    /// From Glance's answer.
    ///
    /// # Errors
    /// `Glance` when it is no image.
    pub(super) fn from_answer(answer: Value) -> Result<Image> {
        let Value::Object(all) = answer else { return Err(no_image()) };
        let (mut base, mut properties) = (Map::new(), Map::new());
        for (key, value) in all {
            if BASE.contains(&key.as_str()) {
                base.insert(key, value);
            } else {
                let value = if NESTED.contains(&key.as_str()) { unfolded(value) } else { value };
                properties.insert(key, value);
            }
        }
        let text = |key: &str| base.get(key).and_then(Value::as_str).map(str::to_owned);
        let bytes = |key: &str| base.get(key).and_then(Value::as_u64);
        let whole = |key: &str| base.get(key).and_then(Value::as_i64).unwrap_or_default();
        Ok(Image {
            id: text("id").ok_or_else(no_image)?,
            name: text("name"),
            status: text("status").unwrap_or_default(),
            size: bytes("size"),
            virtual_size: bytes("virtual_size"),
            disk_format: text("disk_format"),
            container_format: text("container_format"),
            min_disk: whole("min_disk"),
            min_ram: whole("min_ram"),
            checksum: text("checksum"),
            hash: text("os_hash_algo").zip(text("os_hash_value")),
            visibility: text("visibility").unwrap_or_default(),
            owner: text("owner"),
            protected: base.get("protected").and_then(Value::as_bool).unwrap_or(false),
            properties,
            base,
        })
    }

    /// The id of the key that an encrypted image was written with.
    pub fn encryption_key_id(&self) -> Option<&str> {
        self.properties.get("cinder_encryption_key_id").and_then(Value::as_str)
    }

    /// A custom property's text.
    fn property(&self, name: &str) -> Option<&str> {
        self.properties.get(name).and_then(Value::as_str)
    }

    /// Whether the user may see it, when it was not he whom Glance has asked. `None`: its members decide.
    pub(super) fn is_available(&self, context: &RequestContext) -> Option<bool> {
        if context.token().is_some() || context.is_admin || self.visibility == "public" {
            return Some(true);
        }
        let same = |known: Option<&str>, own: Option<&String>| own.map(String::as_str) == known;
        if let Some(project) = context.project_id.as_ref() {
            for owner in [self.owner.as_deref(), self.property("owner_id"), self.property("project_id")] {
                if owner.is_some() && same(owner, Some(project)) {
                    return Some(true);
                }
            }
        }
        if self.visibility == "shared" && context.project_id.is_some() {
            return None;
        }
        let user = self.property("user_id");
        Some(user.is_some() && same(user, context.user_id.as_ref()))
    }
}

fn no_image() -> Error {
    Error::new(Code::Glance, "Glance's answer describes no image")
}

fn unfolded(value: Value) -> Value {
    match value.as_str().map(serde_json::from_str) {
        Some(Ok(inner)) => inner,
        _ => value,
    }
}

/// Cinder's image metadata as Glance wants it: one level, texts for what is nested, nothing that only Glance
/// writes.
pub(super) fn to_glance(meta: &Map<String, Value>) -> Map<String, Value> {
    let mut out = meta.clone();
    out.retain(|key, _| !READ_ONLY.contains(&key.as_str()));
    if let Some(Value::Object(properties)) = out.remove("properties") {
        for (key, value) in properties {
            let value = match NESTED.contains(&key.as_str()) && !value.is_string() {
                true => Value::String(value.to_string()),
                false => value,
            };
            out.insert(key, value);
        }
    }
    out
}

/// The JSON patch that gives `image` these properties; with `purge`, it loses its other added ones.
pub(super) fn patch(image: &Image, wanted: &Map<String, Value>, purge: bool) -> Vec<Value> {
    let path = |key: &str| format!("/{}", key.replace('~', "~0").replace('/', "~1"));
    let mut operations = Vec::new();
    for (key, value) in wanted {
        let now = image.base.get(key).or_else(|| image.properties.get(key));
        let op = if now.is_some() { "replace" } else { "add" };
        if now != Some(value) {
            operations.push(serde_json::json!({"op": op, "path": path(key), "value": value}));
        }
    }
    if purge {
        for key in image.properties.keys().filter(|key| !wanted.contains_key(*key)) {
            operations.push(serde_json::json!({"op": "remove", "path": path(key)}));
        }
    }
    operations
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image() -> Image {
        Image::from_answer(json!({
            "id": "i1", "name": "n", "status": "active", "size": 10, "virtual_size": null,
            "disk_format": "raw", "container_format": "bare", "min_disk": 2, "min_ram": 0, "checksum": "c",
            "os_hash_algo": "sha512", "os_hash_value": "h", "visibility": "private", "owner": "p1",
            "protected": false, "schema": "/v2/schemas/image", "os_distro": "debian",
            "mappings": "[{\"a\": 1}]", "cinder_encryption_key_id": "k", "owner_specified.x/y": "z",
        }))
        .unwrap()
    }

    #[test]
    fn added_properties_are_kept_apart() {
        let image = image();
        assert_eq!((image.size, image.virtual_size, image.min_disk), (Some(10), None, 2));
        assert_eq!(image.hash, Some(("sha512".into(), "h".into())));
        assert_eq!(image.properties["os_distro"], "debian");
        assert_eq!(image.properties["mappings"], json!([{"a": 1}]));
        assert_eq!(image.encryption_key_id(), Some("k"));
        assert_eq!(image.properties.len(), 4);
        assert!(image.base.contains_key("min_disk"));
        for bad in [json!([]), json!({"name": "x"}), Value::Null] {
            assert_eq!(Image::from_answer(bad).unwrap_err().code(), Code::Glance);
        }
    }

    #[test]
    fn metadata_goes_back_flat_and_without_what_glance_writes() {
        let Value::Object(meta) = json!({
            "id": "i1", "status": "queued", "name": "n", "min_disk": 1,
            "properties": {"os_distro": "debian", "block_device_mapping": [1], "mappings": "[]"},
        }) else {
            unreachable!()
        };
        assert_eq!(
            Value::Object(to_glance(&meta)),
            json!({"name": "n", "min_disk": 1, "os_distro": "debian", "block_device_mapping": "[1]", "mappings": "[]"})
        );
    }

    #[test]
    fn a_patch_says_only_what_changes() {
        let Value::Object(wanted) = json!({"name": "n", "min_disk": 3, "os_distro": "arch", "new/x": "1"})
        else {
            unreachable!()
        };
        let mut expected = vec![
            json!({"op": "replace", "path": "/min_disk", "value": 3}),
            json!({"op": "replace", "path": "/os_distro", "value": "arch"}),
            json!({"op": "add", "path": "/new~1x", "value": "1"}),
        ];
        let sorted = |mut list: Vec<Value>| {
            list.sort_by_key(|op| op["path"].to_string());
            list
        };
        assert_eq!(sorted(patch(&image(), &wanted, false)), sorted(expected.clone()));
        for gone in ["/cinder_encryption_key_id", "/mappings", "/owner_specified.x~1y"] {
            expected.push(json!({"op": "remove", "path": gone}));
        }
        assert_eq!(sorted(patch(&image(), &wanted, true)), sorted(expected));
    }

    #[test]
    fn who_may_see_an_image_that_a_stand_in_has_asked_for() {
        let context = |project: &str, token: Option<&str>, admin: bool| {
            let fields =
                json!({"project_id": project, "user_id": "u1", "auth_token": token, "is_admin": admin});
            let Value::Object(fields) = fields else { unreachable!() };
            RequestContext::from_fields(fields)
        };
        let private = image();
        assert_eq!(private.is_available(&context("p1", None, false)), Some(true));
        assert_eq!(private.is_available(&context("p2", None, false)), Some(false));
        assert_eq!(private.is_available(&context("p2", Some("t"), false)), Some(true));
        assert_eq!(private.is_available(&context("p2", None, true)), Some(true));
        let shared = Image { visibility: "shared".into(), ..image() };
        assert_eq!(shared.is_available(&context("p2", None, false)), None);
        let public = Image { visibility: "public".into(), ..image() };
        assert_eq!(public.is_available(&context("p2", None, false)), Some(true));
        let mut of_user = image();
        of_user.properties.insert("user_id".into(), json!("u1"));
        assert_eq!(of_user.is_available(&context("p2", None, false)), Some(true));
    }
}
