//! Where Redis is: one server, or a few nodes of a Redis Cluster, which name the others.
//!
//! Reads; connects to nothing. The URL may hold a password, so it is a type of its own that shows none: `expose` and
//! `nodes` are the ways to the text, and only the code that connects calls them. Invariant: a `RedisUrl` has a host
//! at each place for one, and nothing in it that would be passed over.

use std::{fmt, net::Ipv6Addr};

/// Where Redis is. Shows itself without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

/// What stands behind the scheme.
struct Parts<'a> {
    /// `NAME:PASSWORD` or `:PASSWORD`.
    credentials: Option<&'a str>,
    /// `HOST:PORT`, of a cluster several with commas between.
    places: &'a str,
    /// The number of the database, empty for 0.
    database: &'a str,
}

impl RedisUrl {
    /// Takes `redis://[[NAME]:PASSWORD@]HOST[:PORT][/DATABASE]`, and `redis+cluster://` with several hosts and no
    /// database; `rediss://` and `rediss+cluster://` with TLS.
    ///
    /// # Errors
    /// A phrase that says what is wrong and repeats nothing of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err("not redis://HOST:PORT or redis+cluster://HOST:PORT,HOST:PORT".to_owned());
        };
        let is_cluster = match scheme {
            "redis" | "rediss" => false,
            "redis+cluster" | "rediss+cluster" => true,
            _ => {
                return Err(
                    "of an unknown kind: redis://, rediss://, redis+cluster:// and rediss+cluster:// are known"
                        .to_owned(),
                );
            }
        };
        if text.chars().any(|letter| letter.is_control() || letter.is_whitespace()) {
            return Err("with a space or a control character".to_owned());
        }
        if rest.contains(['?', '#']) {
            return Err("with a ? or #, behind which nothing is known; in a password write %3F or %23".to_owned());
        }
        let parts = Parts::of(rest);
        if let Some(credentials) = parts.credentials {
            check_credentials(credentials)?;
        }
        if !is_cluster && parts.places.contains(',') {
            return Err("with several hosts, which only redis+cluster:// and rediss+cluster:// have".to_owned());
        }
        if !parts.places.split(',').all(is_place) {
            return Err(
                "without a HOST or HOST:PORT where one belongs; in a password write %2F for / and %40 for @".to_owned()
            );
        }
        if is_cluster && !parts.database.is_empty() {
            return Err("with a database, which a cluster does not have".to_owned());
        }
        if !parts.database.is_empty() && !is_number(parts.database) {
            return Err("with something other than the number of a database behind the host".to_owned());
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether it names nodes of a cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.scheme().ends_with("+cluster")
    }

    /// The whole text, password included. For connecting, never for showing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// A `redis://` or `rediss://` of each host that is named, password included. For connecting, never for showing.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let scheme = self.scheme().trim_end_matches("+cluster");
        let Parts { credentials, places, database } = self.parts();
        let credentials = credentials.map(|credentials| format!("{credentials}@")).unwrap_or_default();
        places.split(',').map(|place| format!("{scheme}://{credentials}{place}/{database}")).collect()
    }

    fn scheme(&self) -> &str {
        self.0.split_once("://").map_or("", |(scheme, _)| scheme)
    }

    fn parts(&self) -> Parts<'_> {
        Parts::of(self.0.split_once("://").map_or("", |(_, rest)| rest))
    }
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Self {
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        match authority.rsplit_once('@') {
            Some((credentials, places)) => Self { credentials: Some(credentials), places, database },
            None => Self { credentials: None, places: authority, database },
        }
    }
}

fn check_credentials(credentials: &str) -> Result<(), String> {
    if credentials.contains('@') {
        return Err("with an @ in its name or password, where %40 belongs".to_owned());
    }
    match credentials.split_once(':') {
        Some((_, password)) if !password.is_empty() => Ok(()),
        _ => Err("with a name and no password: write redis://NAME:PASSWORD@HOST or redis://:PASSWORD@HOST".to_owned()),
    }
}

/// Whether a text is a host, with a port or without.
fn is_place(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let named = !host.is_empty() && host.bytes().all(legal);
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    (named || address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()))
        && port.is_none_or(|port| port != "0" && is_number(port))
}

/// Whether a text is a whole number of 16 bits, as ports and databases have them.
fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { credentials, places, database } = self.parts();
        write!(formatter, "{}://", self.scheme())?;
        if let Some((name, _)) = credentials.and_then(|credentials| credentials.split_once(':')) {
            write!(formatter, "{name}:***@")?;
        }
        formatter.write_str(places)?;
        if database.is_empty() { Ok(()) } else { write!(formatter, "/{database}") }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RedisUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::RedisUrl;

    #[test]
    fn a_password_is_masked_wherever_it_stands() {
        let shown = [
            ("redis://h", "redis://h"),
            ("redis://127.0.0.1:6379/2", "redis://127.0.0.1:6379/2"),
            ("redis://:hunter2@h:1", "redis://:***@h:1"),
            ("rediss://u:hunter2@[::1]:6379/", "rediss://u:***@[::1]:6379"),
            ("redis://u:%40hun:ter2@h/15", "redis://u:***@h/15"),
            ("redis+cluster://u:hunter2@a:1,b:2,[fe80::1]", "redis+cluster://u:***@a:1,b:2,[fe80::1]"),
        ];
        for (text, expected) in shown {
            let url = RedisUrl::parse(text).expect(text);
            assert_eq!(url.to_string(), expected);
            assert_eq!(format!("{url:?}"), format!("RedisUrl({expected})"));
            assert_eq!(url.expose(), text);
        }
    }

    #[test]
    fn every_node_of_a_cluster_has_the_credentials_and_the_scheme() {
        let nodes = |text| RedisUrl::parse(text).expect(text).nodes();
        assert_eq!(nodes("redis+cluster://a:1,b:2"), ["redis://a:1/", "redis://b:2/"]);
        assert_eq!(nodes("rediss+cluster://u:p@a,b:2"), ["rediss://u:p@a/", "rediss://u:p@b:2/"]);
        assert_eq!(nodes("rediss://:p@a:1/3"), ["rediss://:p@a:1/3"]);
        assert!(RedisUrl::parse("rediss+cluster://a").expect("one node is enough").is_cluster());
        assert!(!RedisUrl::parse("redis://a").expect("a server").is_cluster());
    }

    #[test]
    fn what_would_be_passed_over_or_guessed_at_is_refused() {
        for text in [
            "",
            "h:6379",
            "redis:h",
            "http://u:hunter2@h",
            "unix:///run/redis.sock",
            "redis://",
            "redis://:6379",
            "redis://h:0",
            "redis://h:65536",
            "redis://h:+1",
            "redis://h:",
            "redis://::1",
            "redis://[::1",
            "redis://[x]:1",
            "redis://h w",
            "redis://h\n",
            "redis://h/x",
            "redis://h/1/",
            "redis://h/65536",
            "redis://h?password=hunter2",
            "rediss://h/#insecure",
            "redis://hunter2@h",
            "redis://hunter2:@h",
            "redis://u:hunter2@b@h",
            "redis://u:hunter2/b@h",
            "redis://u:1/hunter2@h",
            "redis://a:1,b:2",
            "redis+cluster://a:1,,b:2",
            "redis+cluster://a:1,b:2/0",
        ] {
            let reason = RedisUrl::parse(text).expect_err(text);
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
