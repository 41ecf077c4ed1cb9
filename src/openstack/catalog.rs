//! Where a service is: keystone's catalogue, in both forms that reach Scoria.
//!
//! A token of our own brings the catalogue of Identity v3 (`{"interface": "public", "url": …}`); a request's
//! context carries the form of v2, which cinder-api has made of it (`{"publicURL": …}`).

use serde_json::Value;

/// A list of services in either form.
#[derive(Debug, Clone, Default)]
pub(super) struct Catalog(Vec<Value>);

impl Catalog {
    /// From `token.catalog`, or a context's `service_catalog`.
    pub(super) fn new(services: Option<&Value>) -> Catalog {
        Catalog(services.and_then(Value::as_array).cloned().unwrap_or_default())
    }

    /// The URL of a service of this type, at this interface (`public`, or `publicURL`), in this region or in
    /// any.
    pub(super) fn find(&self, service_type: &str, interface: &str, region: Option<&str>) -> Option<String> {
        self.endpoints(service_type)
            .filter(|endpoint| region.is_none_or(|region| is_in(endpoint, region)))
            .find_map(|endpoint| url(endpoint, interface))
    }

    /// The same, but of another region where the named one has none, as stock does for glance.
    pub(super) fn find_near(
        &self,
        service_type: &str,
        interface: &str,
        region: Option<&str>,
    ) -> Option<String> {
        self.find(service_type, interface, region).or_else(|| self.find(service_type, interface, None))
    }

    fn endpoints(&self, service_type: &str) -> impl Iterator<Item = &Value> {
        self.0
            .iter()
            .filter(move |service| service["type"].as_str() == Some(service_type))
            .filter_map(|service| service["endpoints"].as_array())
            .flatten()
    }
}

fn is_in(endpoint: &Value, region: &str) -> bool {
    ["region", "region_id"].iter().any(|key| endpoint[key].as_str() == Some(region))
}

fn url(endpoint: &Value, interface: &str) -> Option<String> {
    let interface = interface.strip_suffix("URL").unwrap_or(interface);
    let url = match endpoint["interface"].as_str() {
        Some(own) if own == interface => endpoint["url"].as_str(),
        Some(_) => None,
        None => endpoint.get(format!("{interface}URL")).and_then(Value::as_str),
    };
    url.filter(|url| !url.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_are_read_by_type_interface_and_region() {
        let v3 = json!([
            {"type": "volumev3", "endpoints": [{"interface": "public", "region": "A", "url": "http://c"}]},
            {"type": "compute", "endpoints": [
                {"interface": "admin", "region": "A", "url": "http://adm"},
                {"interface": "public", "region": "A", "url": "http://a"},
                {"interface": "public", "region_id": "B", "url": "http://b"}]}]);
        let v2 = json!([{"type": "compute", "endpoints": [
            {"region": "A", "publicURL": "http://a", "adminURL": "http://adm"},
            {"region": "B", "publicURL": "http://b"}]}]);
        for catalog in [Catalog::new(Some(&v3)), Catalog::new(Some(&v2))] {
            let find = |interface, region| catalog.find("compute", interface, region);
            assert_eq!(find("public", None).as_deref(), Some("http://a"));
            assert_eq!(find("publicURL", Some("B")).as_deref(), Some("http://b"));
            assert_eq!(find("admin", None).as_deref(), Some("http://adm"));
            assert_eq!(find("admin", Some("B")), None);
            assert_eq!(find("internal", None), None);
            assert_eq!(find("public", Some("C")), None);
            assert_eq!(catalog.find_near("compute", "public", Some("C")).as_deref(), Some("http://a"));
            assert_eq!(catalog.find("image", "public", None), None);
        }
        assert_eq!(Catalog::new(Some(&json!({"x": 1}))).find("compute", "public", None), None);
        assert_eq!(Catalog::new(None).find("compute", "public", None), None);
    }
}
