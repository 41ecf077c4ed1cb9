//! Where the keys of encrypted volumes are kept, and as whom they are asked for.
//!
//! Stock leaves this to castellan, which loads a class by its name and has options of its own for each. Two of
//! its managers are known here: Barbican, its default, and Cinder's single key in the configuration file. A
//! service without encrypted volumes needs none, so that a manager that is not known is only a warning.

use std::path::PathBuf;

use secrecy::SecretString;

use super::openstack::{Account, TlsOptions, account};
use super::options::Group::{Barbican, BarbicanUser, KeyManager};
use super::problem::{Severity, shown};
use super::reader::{Reader, Scope};

/// `[key_manager]`, and what its managers need.
#[derive(Debug, Clone, Default)]
pub struct KeyManagerConfig {
    /// `backend`.
    pub backend: KeyBackend,
    /// `fixed_key`, in hex. With another manager it is the key of volumes from before it.
    pub fixed_key: Option<SecretString>,
    /// `[barbican]`.
    pub barbican: BarbicanConfig,
}

/// A key manager.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum KeyBackend {
    /// OpenStack's.
    #[default]
    Barbican,
    /// One key for all volumes, in the configuration file (`ConfKeyManager`).
    Fixed,
    /// One that Scoria does not know.
    Other(String),
}

impl KeyBackend {
    /// By castellan's name, or by the name of the class.
    fn named(name: &str) -> KeyBackend {
        match name.rsplit('.').next() {
            Some("barbican" | "BarbicanKeyManager") => KeyBackend::Barbican,
            Some("ConfKeyManager") => KeyBackend::Fixed,
            _ => KeyBackend::Other(name.to_owned()),
        }
    }
}

/// Barbican.
#[derive(Debug, Clone, Default)]
pub struct BarbicanConfig {
    /// `barbican_endpoint`; `None`: look into the catalogue.
    pub endpoint: Option<String>,
    /// `barbican_api_version`; `None`: v1.
    pub version: Option<String>,
    /// `barbican_endpoint_type`.
    pub interface: String,
    /// `barbican_region_name`.
    pub region: Option<String>,
    /// `verify_ssl` and `verify_ssl_path`.
    pub tls: TlsOptions,
    /// `[barbican_service_user]`, when `send_service_user_token` is on: its token goes along with the user's.
    pub service_user: Option<Account>,
}

/// Reads `[key_manager]`, `[barbican]` and `[barbican_service_user]`.
pub(super) fn key_manager(reader: &Reader<'_>) -> KeyManagerConfig {
    let scope = Scope::Global(KeyManager);
    let backend = KeyBackend::named(&reader.text(scope, "backend"));
    if let (KeyBackend::Other(name), Some(found)) = (&backend, reader.found(scope, "backend")) {
        let text = format!(
            "`{}` is not supported (known: barbican, cinder.keymgr.conf_key_mgr.ConfKeyManager): no encrypted \
             volume can be made",
            shown(name)
        );
        reader.complain(Severity::Warning, &found, "backend", text);
    }
    let fixed_key = reader.optional(scope, "fixed_key").map(SecretString::from);
    KeyManagerConfig { backend, fixed_key, barbican: barbican(reader) }
}

fn barbican(reader: &Reader<'_>) -> BarbicanConfig {
    let scope = Scope::Global(Barbican);
    let send = reader.boolean(scope, "send_service_user_token");
    let service_user = send.then(|| account(reader, BarbicanUser.section())).flatten();
    if send && service_user.is_none() {
        let text = "is on, but [barbican_service_user] has no account: set auth_type, auth_url, username and \
                    password";
        reader.report(Severity::Warning, None, (Barbican.section(), "send_service_user_token"), text);
    }
    let verify = reader.boolean(scope, "verify_ssl");
    let ca = reader.optional(scope, "verify_ssl_path").map(PathBuf::from);
    BarbicanConfig {
        endpoint: reader.optional(scope, "barbican_endpoint"),
        version: reader.optional(scope, "barbican_api_version"),
        interface: reader.choice(scope, "barbican_endpoint_type"),
        region: reader.optional(scope, "barbican_region_name"),
        tls: TlsOptions { ca: ca.filter(|_| verify), insecure: !verify, client: None },
        service_user,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use secrecy::ExposeSecret;

    use super::super::{Config, Report, Source, ini};
    use super::*;

    const BASE: &str = "[DEFAULT]\nhost=h1\nenabled_backends=ceph\ntransport_url=rabbit://u:mqpw@h/v\n\
                        [database]\nconnection=mysql+pymysql://cinder:dbpw@db/cinder\n\
                        [ceph]\nvolume_driver=cinder.volume.drivers.rbd.RBDDriver\n";

    fn report(text: &str) -> Report {
        let text = format!("{BASE}{text}");
        let file = ini::parse(Path::new("/etc/cinder.conf"), text.as_bytes()).unwrap();
        Config::from_source(&Source::new(vec![file], std::iter::empty()))
    }

    fn keys(text: &str) -> KeyManagerConfig {
        let report = report(text);
        let problems = report.problems;
        report.config.unwrap_or_else(|| panic!("{problems:?}")).openstack.keys
    }

    #[test]
    fn a_manager_is_known_by_its_short_name_and_by_its_class() {
        assert_eq!(keys("").backend, KeyBackend::Barbican);
        for (name, backend) in [
            ("barbican", KeyBackend::Barbican),
            ("castellan.key_manager.barbican_key_manager.BarbicanKeyManager", KeyBackend::Barbican),
            ("cinder.keymgr.conf_key_mgr.ConfKeyManager", KeyBackend::Fixed),
        ] {
            assert_eq!(keys(&format!("[key_manager]\nbackend={name}\n")).backend, backend);
            assert_eq!(keys(&format!("[key_manager]\napi_class={name}\n")).backend, backend);
        }
        let report = report("[key_manager]\nbackend=vault\n");
        assert!(report.at_least(Severity::Warning).any(|w| w.to_string().contains("`vault`")));
        assert_eq!(report.config.unwrap().openstack.keys.backend, KeyBackend::Other("vault".into()));
    }

    #[test]
    fn the_fixed_key_is_kept_secret_whatever_section_it_is_in() {
        for section in ["key_manager", "keymgr"] {
            let found = keys(&format!("[{section}]\nfixed_key=c0ffee\n"));
            assert_eq!(found.fixed_key.as_ref().unwrap().expose_secret(), "c0ffee");
            assert!(!format!("{found:?}").contains("c0ffee"));
        }
        assert!(keys("").fixed_key.is_none());
    }

    #[test]
    fn barbican_has_an_account_of_its_own_when_it_is_wanted() {
        let account =
            "[barbican_service_user]\nauth_type=password\nauth_url=http://k/v3\nusername=u\npassword=x\n";
        let plain = keys(account).barbican;
        assert!(plain.service_user.is_none() && plain.endpoint.is_none() && plain.interface == "public");
        assert_eq!(plain.tls, TlsOptions::default());
        let full = keys(&format!(
            "{account}[barbican]\nsend_service_user_token=true\nbarbican_endpoint=http://b:9311/\n\
             barbican_endpoint_type=internal\nverify_ssl_path=/ca.pem\n"
        ))
        .barbican;
        assert_eq!(full.service_user.unwrap().auth_url, "http://k");
        assert_eq!((full.endpoint.as_deref(), full.interface.as_str()), (Some("http://b:9311/"), "internal"));
        assert_eq!(full.tls.ca.as_deref(), Some(Path::new("/ca.pem")));
        let careless = keys("[barbican]\nverify_ssl=false\nverify_ssl_path=/ca.pem\n").barbican.tls;
        assert_eq!(careless, TlsOptions { insecure: true, ..TlsOptions::default() });
        let lonely = report("[barbican]\nsend_service_user_token=true\n");
        assert!(lonely.at_least(Severity::Warning).any(|w| w.to_string().contains("has no account")));
    }
}
