//! What a volume remembers of its image (`volume_glance_metadata`).

use serde_json::{Map, Value};

use super::Metadata;
use crate::openstack::glance::Image;

/// Glance's own properties that are kept (`IMAGE_ATTRIBUTES`).
const ATTRIBUTES: [&str; 6] = ["checksum", "container_format", "disk_format", "min_disk", "min_ram", "size"];

/// Of an image as Glance describes it (`get_volume_image_metadata`).
pub(in crate::volume) fn of_image(image: &Image) -> Metadata {
    collect(&image.id, &image.base, &image.properties)
}

/// Of an image as Cinder's API describes it.
pub(in crate::volume) fn from_fields(image_id: &str, meta: &Map<String, Value>) -> Metadata {
    let none = Map::new();
    collect(image_id, meta, meta.get("properties").and_then(Value::as_object).unwrap_or(&none))
}

/// What is Glance's own wins over what was added to the image.
fn collect(image_id: &str, base: &Map<String, Value>, properties: &Map<String, Value>) -> Metadata {
    let known = |(key, value): (&String, &Value)| (!value.is_null()).then(|| (key.clone(), text(value)));
    let mut all: Metadata = properties.iter().filter_map(known).collect();
    all.insert("image_id".to_owned(), image_id.to_owned());
    if let Some(name) = base.get("name").and_then(Value::as_str).filter(|n| !n.is_empty()) {
        all.insert("image_name".to_owned(), name.to_owned());
    }
    for key in ATTRIBUTES {
        if let Some(value) = base.get(key).filter(|v| !v.is_null()) {
            all.insert(key.to_owned(), text(value));
        }
    }
    all
}

/// As Python's `str` writes it.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => repr(other),
    }
}

fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.contains('\'') && !text.contains('"') => format!("\"{text}\""),
        Value::String(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|(k, v)| format!("{}: {}", repr(&Value::String(k.clone())), repr(v)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_keeps_attributes_and_properties_of_its_image() {
        let meta = json!({
            "name": "cirros", "size": 7, "min_disk": 0, "min_ram": null, "checksum": "c", "disk_format": "raw",
            "container_format": "bare", "visibility": "public", "status": "active",
            "properties": {"os_distro": "x", "none": null, "size": "8", "mappings": [{"virtual": "ami", "n": 1, "t": true}]},
        });
        let found = from_fields("i-1", meta.as_object().unwrap());
        let expected = [
            ("checksum", "c"),
            ("container_format", "bare"),
            ("disk_format", "raw"),
            ("image_id", "i-1"),
            ("image_name", "cirros"),
            ("mappings", "[{'virtual': 'ami', 'n': 1, 't': True}]"),
            ("min_disk", "0"),
            ("os_distro", "x"),
            ("size", "7"),
        ];
        let mut found: Vec<_> = found.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let mappings = found.iter_mut().find(|(k, _)| *k == "mappings").unwrap();
        // The order of keys inside is that of the JSON library.
        assert!(mappings.1.contains("'virtual': 'ami'") && mappings.1.contains("'t': True"));
        mappings.1 = expected[5].1;
        assert_eq!(found, expected);
    }
}
