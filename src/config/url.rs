//! The two kinds of URL in a `cinder.conf`: SQLAlchemy's and oslo.messaging's.
//!
//! Both are looser than RFC 3986 (several hosts, unescaped characters in passwords), so they are
//! taken apart here by the rules of `sqlalchemy/engine/url.py` and `oslo_messaging/transport.py`.
//! An error never repeats any part of the URL: when a password holds an unescaped `/`, `?`, `@` or
//! `:`, a part of it may have landed in any field.

use secrecy::SecretString;

/// `dialect+driver://user:password@host:port/database?key=value`.
#[derive(Debug, Clone, Default)]
pub(super) struct DatabaseUrl {
    /// `mysql`, `mysql+pymysql`, …
    pub(super) driver: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<SecretString>,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) database: Option<String>,
    pub(super) query: Vec<(String, String)>,
}

/// Takes a SQLAlchemy URL apart.
pub(super) fn database(url: &str) -> Result<DatabaseUrl, String> {
    const FORM: &str = "expected mysql+pymysql://USER:PASSWORD@HOST[:PORT]/DATABASE";
    let (driver, rest) = url.split_once("://").ok_or_else(|| format!("is not a database URL; {FORM}"))?;
    let named = !driver.is_empty() && driver.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '+');
    if !named {
        return Err(format!("is not a database URL; {FORM}"));
    }
    let mut parsed = DatabaseUrl { driver: driver.to_lowercase(), ..DatabaseUrl::default() };
    // SQLAlchemy: user `[^:/]*`, password `[^@]*` (so it may hold `/`, `?` and `#`), then `@`.
    let mut rest = rest;
    let user_end = rest.find([':', '/']).unwrap_or(rest.len());
    let (front, tail) = rest.split_at(user_end);
    if let Some((password, after)) = tail.strip_prefix(':').and_then(|t| t.split_once('@')) {
        parsed.user = Some(unquote(front));
        parsed.password = Some(SecretString::from(unquote(password)));
        rest = after;
    } else if let Some((user, _)) = front.rsplit_once('@') {
        parsed.user = Some(unquote(user));
        rest = rest.get(user.len() + 1..).unwrap_or_default();
    }
    let (address, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if address.contains('@') {
        return Err(format!("has an unescaped `@` in the password (write %40); {FORM}"));
    }
    let (host, port) = host_port(address).map_err(|e| format!("{e}; {FORM}"))?;
    parsed.host = host;
    parsed.port = port;
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    parsed.database = path.strip_prefix('/').map(str::to_owned);
    parsed.query = pairs(query);
    Ok(parsed)
}

/// One host of a transport URL; nothing is defaulted yet.
#[derive(Debug, Clone)]
pub(super) struct TransportHost {
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) user: Option<String>,
    pub(super) password: Option<SecretString>,
}

/// `transport://user:pass@host:port[,…]/vhost?key=value`.
#[derive(Debug, Clone)]
pub(super) struct TransportUrl {
    pub(super) transport: String,
    pub(super) hosts: Vec<TransportHost>,
    /// Empty when the URL has none.
    pub(super) vhost: String,
    /// Repeated keys joined with commas, blank values dropped, as upstream.
    pub(super) query: Vec<(String, String)>,
}

/// Takes an oslo.messaging URL apart.
pub(super) fn transport(url: &str) -> Result<TransportUrl, String> {
    const FORM: &str = "expected rabbit://USER:PASSWORD@HOST:PORT[,USER:PASSWORD@HOST:PORT]/VHOST";
    let (transport, rest) = url.split_once("://").ok_or_else(|| format!("is not a transport URL; {FORM}"))?;
    let (hosts_part, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if !hosts_part.contains('@') && tail.contains('@') {
        return Err(format!(
            "seems to have an unescaped `/`, `?` or `#` in the password (write %2F, %3F, %23); {FORM}"
        ));
    }
    let tail = tail.split_once('#').map_or(tail, |(before, _)| before);
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));

    let mut hosts = Vec::new();
    for part in hosts_part.split(',').filter(|part| !part.is_empty()) {
        let (user, password, address) = match part.rsplit_once('@') {
            None => (None, None, part),
            Some((credentials, address)) => match credentials.split_once(':') {
                None => (Some(unquote(credentials)), None, address),
                Some((user, password)) => {
                    (Some(unquote(user)), Some(SecretString::from(unquote(password))), address)
                }
            },
        };
        let (host, port) = host_port(address).map_err(|e| format!("{e}; {FORM}"))?;
        hosts.push(TransportHost { host, port, user, password });
    }

    let mut joined: Vec<(String, String)> = Vec::new();
    for (key, value) in pairs(query).into_iter().filter(|(_, value)| !value.is_empty()) {
        match joined.iter_mut().find(|(k, _)| *k == key) {
            Some((_, all)) => {
                all.push(',');
                all.push_str(&value);
            }
            None => joined.push((key, value)),
        }
    }
    Ok(TransportUrl {
        transport: transport.to_lowercase(),
        hosts,
        vhost: unquote(path.strip_prefix('/').unwrap_or_default()),
        query: joined,
    })
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`, or a bare IPv6 address.
fn host_port(address: &str) -> Result<(Option<String>, Option<u16>), String> {
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("has an unclosed `[` in a host")?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err("has text between an IPv6 host and its port".to_owned()),
        }
    } else if address.matches(':').count() == 1 {
        address.split_once(':').map_or((address, None), |(host, port)| (host, Some(port)))
    } else {
        (address, None)
    };
    let port = match port {
        None | Some("") => None,
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port != 0 => Some(port),
            _ => {
                return Err("has a port that is not a number from 1 to 65535 \
                            (special characters in a password must be percent-encoded)"
                    .to_owned());
            }
        },
    };
    Ok(((!host.is_empty()).then(|| host.to_owned()), port))
}

/// `urllib.parse.unquote`: what is not a valid escape stays as it is.
fn unquote(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if let (b'%', [high, low, after @ ..]) = (first, tail)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            bytes.push(high * 16 + low);
            rest = after;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// `urllib.parse.parse_qsl` without blank keys; `+` is a space here, and only here.
pub(super) fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| unquote(&text.replace('+', " "));
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    fn db(url: &str) -> Option<String> {
        let u = database(url).ok()?;
        let or = |v: Option<String>| v.unwrap_or_else(|| "-".into());
        let query = u.query.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("&");
        Some(format!(
            "{} {} {} {} {} {} {query}",
            u.driver,
            or(u.user),
            or(u.password.map(|p| p.expose_secret().to_owned())),
            or(u.host),
            or(u.port.map(|p| p.to_string())),
            or(u.database),
        ))
    }

    /// Compared with `sqlalchemy.engine.url.make_url` of SQLAlchemy 2.1.
    #[test]
    fn database_urls_are_taken_apart_as_sqlalchemy_does() {
        for (url, expected) in [
            (
                "mysql+pymysql://cinder:p%40ss@127.0.0.1/cinder?charset=utf8",
                "mysql+pymysql cinder p@ss 127.0.0.1 - cinder charset=utf8",
            ),
            ("mysql://u:p@[::1]:3307/c", "mysql u p ::1 3307 c "),
            ("mysql://u:p@/c?unix_socket=/run/m.sock", "mysql u p - - c unix_socket=/run/m.sock"),
            ("mysql://u@h/c", "mysql u - h - c "),
            ("mysql://h/c", "mysql - - h - c "),
            ("mysql://u:a:b@h/c", "mysql u a:b h - c "),
            ("mysql://u:p/q@h/c", "mysql u p/q h - c "),
            ("mysql://u:p#q?@h/c%20d", "mysql u p#q? h - c%20d "),
            ("mysql://u:a+b@h/c", "mysql u a+b h - c "),
            ("mysql://u:%zz@h/c", "mysql u %zz h - c "),
            ("mysql://u@d:p@h/c", "mysql u@d p h - c "),
            ("mysql://u:p@h:3306/c", "mysql u p h 3306 c "),
            ("mysql://h:3306/c", "mysql - - h 3306 c "),
            ("mysql://u:p@h", "mysql u p h - - "),
            ("mysql://u:p@h/", "mysql u p h -  "),
            ("mysql://u:p@h/c?ssl_ca=/a%20b&ssl_ca=/x#y", "mysql u p h - c ssl_ca=/a b&ssl_ca=/x#y"),
            ("sqlite:///x", "sqlite - - - - x "),
        ] {
            assert_eq!(db(url).as_deref(), Some(expected), "{url}");
        }
        for url in ["foo", "mysql://u:p@h:x/c", "mysql://u:a@b@h/c", "://h/c", ""] {
            assert!(database(url).is_err(), "{url}");
        }
    }

    fn mq(url: &str) -> Option<String> {
        let u = transport(url).ok()?;
        let or = |v: Option<String>| v.unwrap_or_else(|| "-".into());
        let mut text = format!("{} {:?}", u.transport, u.vhost);
        for h in u.hosts {
            let password = or(h.password.map(|p| p.expose_secret().to_owned()));
            text +=
                &format!(" {}|{password}|{}|{}", or(h.user), or(h.host), or(h.port.map(|p| p.to_string())));
        }
        for (k, v) in u.query {
            text += &format!(" {k}={v}");
        }
        Some(text)
    }

    /// Compared with `oslo_messaging.TransportURL.parse` of oslo.messaging 18.3.1.
    #[test]
    fn transport_urls_are_taken_apart_as_oslo_messaging_does() {
        for (url, expected) in [
            ("rabbit://", "rabbit \"\""),
            ("rabbit:///", "rabbit \"\""),
            ("rabbit://h", "rabbit \"\" -|-|h|-"),
            ("rabbit://u:p@h1:1,u2:p%402@h2/vh", "rabbit \"vh\" u|p|h1|1 u2|p@2|h2|-"),
            ("rabbit://u:p@h1,h2:5/", "rabbit \"\" u|p|h1|- -|-|h2|5"),
            ("rabbit://u:p@h//", "rabbit \"/\" u|p|h|-"),
            ("rabbit://u:p@h/%2Fx", "rabbit \"/x\" u|p|h|-"),
            (
                "rabbit://u:p@[::1]:5673,u:p@[fe80::2]/v?ssl=1&rabbit_quorum_queue=true",
                "rabbit \"v\" u|p|::1|5673 u|p|fe80::2|- ssl=1 rabbit_quorum_queue=true",
            ),
            ("rabbit://u@d:p@h/", "rabbit \"\" u@d|p|h|-"),
            ("rabbit://u:p:q@h/", "rabbit \"\" u|p:q|h|-"),
            ("rabbit://u:a+b%20@h/", "rabbit \"\" u|a+b |h|-"),
            ("RABBIT://u:p@H/v", "rabbit \"v\" u|p|H|-"),
            ("rabbit://u:p@h/v?heartbeat_rate=&ssl=true&ssl=false", "rabbit \"v\" u|p|h|- ssl=true,false"),
            ("rabbit://u:p@h/v#x", "rabbit \"v\" u|p|h|-"),
            ("rabbit://u:@h/", "rabbit \"\" u||h|-"),
            ("rabbit://u:p@::1/", "rabbit \"\" u|p|::1|-"),
            ("rabbit://,u:p@h,/v/w", "rabbit \"v/w\" u|p|h|-"),
        ] {
            assert_eq!(mq(url).as_deref(), Some(expected), "{url}");
        }
        for url in ["u:p@h", "", "rabbit://u:p@h:abc/", "rabbit://u:p@h:70000/", "rabbit://u:p@[::1/"] {
            assert!(transport(url).is_err(), "{url}");
        }
    }

    #[test]
    fn no_error_repeats_a_piece_of_the_password() {
        for url in [
            "mysql+pymysql://cinder:top@secret@db/cinder",
            "mysql+pymysql//cinder:secret@db/cinder",
            "mysql://cinder:secret@db:secret/cinder",
            "rabbit://u:top/secret@h/",
            "rabbit://u:top?secret=1@h/",
            "rabbit://u:secret:x/y@h",
            "rabbit//u:secret@h/",
            "rabbit://u:secret@[h/",
        ] {
            for error in [database(url).err(), transport(url).err()].into_iter().flatten() {
                assert!(!error.contains("secret") && !error.contains("top"), "{url}: {error}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "[a-z]{0,6}(://)?[\\PC]{0,60}") {
            let _ = (database(&text), transport(&text));
        }

        #[test]
        fn an_escaped_password_survives(password in "\\PC{1,20}") {
            let escaped: String = password.bytes().map(|b| format!("%{b:02X}")).collect();
            let from_database = database(&format!("mysql://u:{escaped}@h/c")).unwrap().password.unwrap();
            prop_assert_eq!(from_database.expose_secret(), password.as_str());
            let t = transport(&format!("rabbit://u:{escaped}@h/")).unwrap();
            prop_assert_eq!(t.hosts[0].password.as_ref().unwrap().expose_secret(), password.as_str());
        }
    }
}
