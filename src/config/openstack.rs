//! Where keystone, glance and nova are, and as whom Scoria speaks to them.
//!
//! Stock reads these options through three libraries (oslo.config, keystoneauth's loaders, its own
//! `service_auth`), so that one account can be written in several places. Here they become one
//! [`OpenStackConfig`]: each of `[service_user]`, `[glance]` and `[nova]` either has an account or has none.
//! No file is read and no server asked; what is missing is found when it is needed, as by stock.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::keys::{self, KeyManagerConfig};
use super::options::Group::{Default as Defaults, Glance, Nova, ServiceUser};
use super::problem::{Severity, shown};
use super::reader::{Reader, Scope};

/// How long glance may be silent when `glance_request_timeout` is not set (glanceclient's own default).
const GLANCE_TIMEOUT: Duration = Duration::from_secs(600);
/// How long keystone and nova may take when `timeout` is not set. keystoneauth waits for ever.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Everything about other OpenStack services.
#[derive(Debug, Clone)]
pub struct OpenStackConfig {
    /// `auth_strategy` is `keystone`: requests carry tokens.
    pub keystone: bool,
    /// `[service_user]`: who stands in for a user whose token is not known any more.
    pub service_user: Option<Account>,
    /// `send_service_user_token`: the token of `service_user` goes along with the user's.
    pub send_service_token: bool,
    /// `glance_*` and `[glance]`.
    pub glance: GlanceConfig,
    /// `[nova]`.
    pub nova: NovaConfig,
    /// `[key_manager]` and `[barbican]`.
    pub keys: KeyManagerConfig,
}

/// A keystone account (`auth_type = password`).
#[derive(Debug, Clone)]
pub struct Account {
    /// `auth_url`, without its version.
    pub auth_url: String,
    /// Who it is.
    pub user: Named,
    /// `password`.
    pub password: SecretString,
    /// What its token is for.
    pub scope: Option<AuthScope>,
    /// How keystone is spoken to.
    pub tls: TlsOptions,
    /// `timeout`.
    pub timeout: Duration,
}

/// Something that keystone knows by id, or by name within a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// `…_id`.
    Id(String),
    /// `…_name`, and its domain as (`id` or `name`, value).
    Name(String, Option<(&'static str, String)>),
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthScope {
    /// `project_id` or `project_name`.
    Project(Named),
    /// `domain_id` or `domain_name`, as (`id` or `name`, value).
    Domain(&'static str, String),
    /// `system_scope = all`.
    System,
}

/// TLS of one kind of connection. Connections with the same options share a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// `cafile`; unset: the system's certificates.
    pub ca: Option<PathBuf>,
    /// `insecure`: nobody is verified.
    pub insecure: bool,
    /// `certfile`, and `keyfile` (unset: in the same file).
    pub client: Option<(PathBuf, Option<PathBuf>)>,
}

/// Glance.
#[derive(Debug, Clone)]
pub struct GlanceConfig {
    /// `glance_api_servers`, each with its scheme; empty: look into the catalogue.
    pub servers: Vec<String>,
    /// `glance_catalog_info`.
    pub catalog: CatalogInfo,
    /// `[glance] region_name`.
    pub region: Option<String>,
    /// `glance_num_retries` (3).
    pub retries: usize,
    /// `glance_request_timeout`: how long the server may be silent.
    pub timeout: Duration,
    /// `glance_api_insecure`, `glance_ca_certificates_file`, `glance_certfile`, `glance_keyfile`.
    pub tls: TlsOptions,
    /// The account of `[glance]`, which has the service role.
    pub account: Option<Account>,
    /// `file` is among `allowed_direct_url_schemes`: image files that this host can read are read.
    pub read_files: bool,
}

/// `service_type:service_name:endpoint_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogInfo {
    /// For example `image`.
    pub service_type: String,
    /// For example `publicURL`.
    pub endpoint: String,
}

/// Nova.
#[derive(Debug, Clone)]
pub struct NovaConfig {
    /// `interface` (`public`).
    pub interface: String,
    /// `region_name`.
    pub region: Option<String>,
    /// `token_auth_url`: the keystone to use with a user's token.
    pub token_auth_url: Option<String>,
    /// The account.
    pub account: Option<Account>,
    /// `insecure`, `cafile`, `certfile`, `keyfile`.
    pub tls: TlsOptions,
    /// `timeout`.
    pub timeout: Duration,
}

/// What is done with images on this host.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    /// `image_conversion_dir`.
    pub conversion_dir: PathBuf,
    /// `image_conversion_disable`.
    pub conversion_disabled: bool,
    /// `image_compress_on_upload`.
    pub compress_on_upload: bool,
    /// `allow_compression_on_image_upload`: images may be gzipped.
    pub compression_allowed: bool,
    /// `image_introspection_cpu_limit` (60 s).
    pub introspection_cpu: Duration,
    /// `image_introspection_address_space_limit` (1 GiB).
    pub introspection_memory_gib: u64,
    /// `verify_glance_signatures` is `enabled`.
    pub verify_signatures: bool,
    /// `allowed_direct_url_schemes`.
    pub direct_url_schemes: Vec<String>,
    /// `cinder_internal_tenant_project_id` and `_user_id`, when both are set: who owns cached images.
    pub internal_tenant: Option<InternalTenant>,
}

/// Who owns what Cinder keeps for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalTenant {
    /// Project.
    pub project_id: String,
    /// User.
    pub user_id: String,
}

/// A backend's cache of image volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageCacheConfig {
    /// `image_volume_cache_max_size_gb`; `None`: no limit.
    pub max_size_gb: Option<u64>,
    /// `image_volume_cache_max_count`; `None`: no limit.
    pub max_count: Option<u64>,
}

/// Reads `[DEFAULT]`, `[service_user]`, `[glance]` and `[nova]`.
pub(super) fn openstack(reader: &Reader<'_>) -> OpenStackConfig {
    let service_user = account(reader, ServiceUser.section());
    let send = reader.boolean(Scope::Auth(ServiceUser.section()), "send_service_user_token");
    if send && service_user.is_none() {
        let text = "is on, but [service_user] has no account: set auth_type, auth_url, username and password";
        reader.report(Severity::Warning, None, (ServiceUser.section(), "send_service_user_token"), text);
    }
    OpenStackConfig {
        keystone: reader.choice(Scope::Global(Defaults), "auth_strategy") == "keystone",
        send_service_token: send && service_user.is_some(),
        service_user,
        glance: glance(reader),
        nova: nova(reader),
        keys: keys::key_manager(reader),
    }
}

fn glance(reader: &Reader<'_>) -> GlanceConfig {
    let scope = Scope::Global(Defaults);
    let servers = reader.list(scope, "glance_api_servers").into_iter().filter(|s| !s.is_empty());
    let servers = servers.map(|s| if s.contains("//") { s } else { format!("http://{s}") });
    let timeout = match reader.optional(scope, "glance_request_timeout") {
        Some(_) => reader.seconds_from(scope, "glance_request_timeout", 1),
        None => GLANCE_TIMEOUT,
    };
    let path = |name| reader.optional(scope, name).map(PathBuf::from);
    GlanceConfig {
        servers: servers.collect(),
        catalog: catalog_info(reader),
        region: reader.optional(Scope::Global(Glance), "region_name"),
        retries: super::build::size(reader.bounded(scope, "glance_num_retries", 0, 1000)),
        timeout,
        tls: TlsOptions {
            ca: path("glance_ca_certificates_file"),
            insecure: reader.boolean(scope, "glance_api_insecure"),
            client: path("glance_certfile").map(|cert| (cert, path("glance_keyfile"))),
        },
        account: account(reader, Glance.section()),
        read_files: reader.list(scope, "allowed_direct_url_schemes").iter().any(|s| s == "file"),
    }
}

fn catalog_info(reader: &Reader<'_>) -> CatalogInfo {
    let option = "glance_catalog_info";
    let found = reader.found(Scope::Global(Defaults), option);
    let parts: Vec<&str> = found.as_ref().map(|f| f.value.split(':').collect()).unwrap_or_default();
    let [service_type, _, endpoint] = parts[..] else {
        if let Some(found) = &found {
            let text = "must be <service_type>:<service_name>:<endpoint_type>, like image:glance:publicURL";
            reader.complain(Severity::Error, found, option, text);
        }
        return CatalogInfo { service_type: String::new(), endpoint: String::new() };
    };
    CatalogInfo { service_type: service_type.to_owned(), endpoint: endpoint.to_owned() }
}

fn nova(reader: &Reader<'_>) -> NovaConfig {
    let scope = Scope::Global(Nova);
    NovaConfig {
        interface: reader.choice(scope, "interface"),
        region: reader.optional(scope, "region_name"),
        token_auth_url: reader.optional(scope, "token_auth_url").map(|url| identity_base(&url)),
        account: account(reader, Nova.section()),
        tls: tls(reader, Nova.section()),
        timeout: timeout(reader, Nova.section()),
    }
}

/// Reads what concerns images and no server.
pub(super) fn image(reader: &Reader<'_>) -> ImageConfig {
    let scope = Scope::Global(Defaults);
    let project_id = reader.optional(scope, "cinder_internal_tenant_project_id");
    let user_id = reader.optional(scope, "cinder_internal_tenant_user_id");
    let internal_tenant = match (project_id, user_id) {
        (Some(project_id), Some(user_id)) => Some(InternalTenant { project_id, user_id }),
        _ => None,
    };
    ImageConfig {
        conversion_dir: PathBuf::from(reader.text(scope, "image_conversion_dir")),
        conversion_disabled: reader.boolean(scope, "image_conversion_disable"),
        compress_on_upload: reader.boolean(scope, "image_compress_on_upload"),
        compression_allowed: reader.boolean(scope, "allow_compression_on_image_upload"),
        introspection_cpu: reader.seconds_from(scope, "image_introspection_cpu_limit", 1),
        introspection_memory_gib: reader
            .bounded(scope, "image_introspection_address_space_limit", 1, 1024)
            .unsigned_abs(),
        verify_signatures: reader.choice(scope, "verify_glance_signatures") == "enabled",
        direct_url_schemes: reader.list(scope, "allowed_direct_url_schemes"),
        internal_tenant,
    }
}

/// The cache of a backend's section, when it is enabled.
pub(super) fn image_cache(reader: &Reader<'_>, scope: Scope<'_>) -> Option<ImageCacheConfig> {
    let limit = |name| Some(reader.bounded(scope, name, 0, i64::MAX).unsigned_abs()).filter(|n| *n > 0);
    let cache = ImageCacheConfig {
        max_size_gb: limit("image_volume_cache_max_size_gb"),
        max_count: limit("image_volume_cache_max_count"),
    };
    reader.boolean(scope, "image_volume_cache_enabled").then_some(cache)
}

/// The account of a section, or of the section that its `auth_section` names. Where it cannot be used the
/// service works without it, as it would if the section were empty.
pub(super) fn account(reader: &Reader<'_>, section: &str) -> Option<Account> {
    let other = reader.optional(Scope::Auth(section), "auth_section");
    let place = other.as_deref().unwrap_or(section);
    let scope = Scope::Auth(place);
    let found = reader.found(scope, "auth_type").filter(|f| !f.value.is_empty())?;
    if !matches!(found.value.as_str(), "password" | "v3password") {
        let text = format!(
            "`{}` is not supported (known: password, v3password): this account is not used",
            shown(&found.value)
        );
        reader.complain(Severity::Warning, &found, "auth_type", text);
        return None;
    }
    let text = |name| reader.optional(scope, name);
    let missing = |name: &str| {
        let text = "is not set: the account of this section is not used";
        reader.report(Severity::Warning, None, (place, name), text);
    };
    let default_domain = || domain(text("default_domain_id"), text("default_domain_name"));
    let user_domain = domain(text("user_domain_id"), text("user_domain_name")).or_else(default_domain);
    let user = match (text("user_id"), text("username")) {
        (Some(id), _) => Named::Id(id),
        (None, Some(name)) => Named::Name(name, user_domain),
        (None, None) => {
            missing("username");
            return None;
        }
    };
    let Some(auth_url) = text("auth_url") else {
        missing("auth_url");
        return None;
    };
    let Some(password) = text("password").map(SecretString::from) else {
        missing("password");
        return None;
    };
    let project_domain =
        domain(text("project_domain_id"), text("project_domain_name")).or_else(default_domain);
    // In keystoneauth's order, which allows only one of them.
    let target = match (domain(text("domain_id"), text("domain_name")), text("project_id")) {
        (Some((key, value)), _) => Some(AuthScope::Domain(key, value)),
        (None, Some(id)) => Some(AuthScope::Project(Named::Id(id))),
        (None, None) => match text("project_name") {
            Some(name) => Some(AuthScope::Project(Named::Name(name, project_domain))),
            None => text("system_scope").filter(|s| s == "all").map(|_| AuthScope::System),
        },
    };
    // Keystone is spoken to with the session of the section itself.
    Some(Account {
        auth_url: identity_base(&auth_url),
        user,
        password,
        scope: target,
        tls: tls(reader, section),
        timeout: timeout(reader, section),
    })
}

fn domain(id: Option<String>, name: Option<String>) -> Option<(&'static str, String)> {
    id.map(|id| ("id", id)).or_else(|| name.map(|name| ("name", name)))
}

fn tls(reader: &Reader<'_>, section: &str) -> TlsOptions {
    let scope = Scope::Auth(section);
    let path = |name| reader.optional(scope, name).map(PathBuf::from);
    TlsOptions {
        ca: path("cafile"),
        insecure: reader.boolean(scope, "insecure"),
        client: path("certfile").map(|cert| (cert, path("keyfile"))),
    }
}

fn timeout(reader: &Reader<'_>, section: &str) -> Duration {
    let Some(found) = reader.found(Scope::Auth(section), "timeout").filter(|f| !f.value.is_empty()) else {
        return TIMEOUT;
    };
    match found.value.trim().parse::<f64>().ok().filter(|s| (0.001..=86_400.0).contains(s)) {
        Some(seconds) => Duration::from_secs_f64(seconds),
        None => {
            let text = format!("must be a number of seconds, at most a day, not `{}`", shown(&found.value));
            reader.complain(Severity::Error, &found, "timeout", text);
            TIMEOUT
        }
    }
}

/// The URL of an identity service without its version, which may be that of an API long gone.
pub fn identity_base(url: &str) -> String {
    let url = url.trim().trim_end_matches('/');
    let bare = ["/v3", "/v2.0"].iter().find_map(|version| url.strip_suffix(version)).unwrap_or(url);
    bare.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
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

    fn config(text: &str) -> Config {
        let report = report(text);
        let problems = report.problems;
        report.config.unwrap_or_else(|| panic!("{problems:?}"))
    }

    const ACCOUNT: &str = "auth_type=password\nauth_url=http://k:5000/v3/\nusername=cinder\npassword=s3cr3t\n\
                           user_domain_name=Default\nproject_domain_name=Default\nproject_name=service\n";

    #[test]
    fn nothing_set_is_keystone_without_accounts() {
        let c = config("");
        assert!(c.openstack.keystone && c.openstack.service_user.is_none());
        let glance = c.openstack.glance;
        assert!(glance.servers.is_empty() && glance.account.is_none() && !glance.read_files);
        assert_eq!((glance.retries, glance.timeout), (3, Duration::from_secs(600)));
        assert_eq!(
            (glance.catalog.service_type.as_str(), glance.catalog.endpoint.as_str()),
            ("image", "publicURL")
        );
        assert_eq!(c.openstack.nova.interface, "public");
        assert_eq!(c.image.conversion_dir, Path::new("/var/lib/cinder/conversion"));
        assert!(c.image.verify_signatures && c.image.internal_tenant.is_none());
        assert_eq!(c.backends[0].image_cache, None);
    }

    #[test]
    fn an_account_is_read_where_it_is_or_where_auth_section_points() {
        let c = config(&format!(
            "[DEFAULT]\nglance_api_servers=g1:9292,https://g2\nimage_conversion_cpu_limit=7\n\
             [keystone_authtoken]\n{ACCOUNT}[nova]\nauth_section=keystone_authtoken\ntimeout=1.5\n\
             interface=internal\ninsecure=yes\n\
             [service_user]\nsend_service_user_token=true\nauth_type=v3password\nuser-name=s\npassword=x\n\
             auth_url=http://k:5000/v2.0/\n[ceph]\nimage_volume_cache_enabled=true\nimage_volume_cache_max_count=5\n",
        ));
        let nova = c.openstack.nova.account.unwrap();
        assert_eq!(nova.auth_url, "http://k:5000");
        assert_eq!(nova.user, Named::Name("cinder".into(), Some(("name", "Default".into()))));
        assert_eq!(nova.password.expose_secret(), "s3cr3t");
        let project = Named::Name("service".into(), Some(("name", "Default".into())));
        assert_eq!(nova.scope, Some(AuthScope::Project(project)));
        assert!(nova.tls.insecure && nova.timeout == Duration::from_millis(1500));
        assert_eq!(c.openstack.nova.interface, "internal");
        assert_eq!(c.openstack.glance.servers, ["http://g1:9292", "https://g2"]);
        assert_eq!(c.image.introspection_cpu, Duration::from_secs(7));
        let service = c.openstack.service_user.unwrap();
        assert_eq!(service.user, Named::Name("s".into(), None));
        assert_eq!(service.auth_url, "http://k:5000");
        let cache = ImageCacheConfig { max_size_gb: None, max_count: Some(5) };
        assert_eq!(c.backends[0].image_cache, Some(cache));
    }

    #[test]
    fn an_account_that_cannot_be_used_is_told_and_left_out() {
        for (text, told) in [
            ("[nova]\nauth_type=v3oidcpassword\n", "not supported"),
            ("[nova]\nauth_type=password\nauth_url=http://k\npassword=s3cr3t\n", "username"),
            ("[nova]\nauth_type=password\nusername=u\npassword=s3cr3t\n", "auth_url"),
            ("[nova]\nauth_type=password\nusername=u\nauth_url=http://k\n", "password"),
            ("[service_user]\nsend_service_user_token=true\n", "has no account"),
        ] {
            let report = report(text);
            let warnings: Vec<_> = report.at_least(Severity::Warning).map(ToString::to_string).collect();
            assert!(warnings.iter().any(|w| w.contains(told)), "{text}: {warnings:?}");
            assert!(!format!("{report:?}").contains("s3cr3t"), "{text}");
            assert!(report.config.unwrap().openstack.nova.account.is_none());
        }
        for bad in
            ["glance_catalog_info=image", "auth_strategy=none", "[nova]\ntimeout=x", "[nova]\ninterface=x"]
        {
            let bad = if bad.starts_with('[') { bad.to_owned() } else { format!("[DEFAULT]\n{bad}") };
            assert!(report(&format!("{bad}\n")).config.is_none(), "{bad}");
        }
    }

    #[test]
    fn misspelt_options_of_an_account_are_suspect() {
        let report = report("[nova]\nauth_tpye=password\nregion_nme=x\nusername=u\nproject_name=p\n");
        let all: Vec<_> = report.at_least(Severity::Suspect).map(ToString::to_string).collect();
        assert!(all.len() == 2 && all[0].contains("`auth_type`"), "{all:?}");
    }
}
