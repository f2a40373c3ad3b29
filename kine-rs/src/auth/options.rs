//! How users prove who they are: plain data from the flags, checked but not opened.

use super::jwt::JwtOptions;
use super::{password, sessions};
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub tokens: Tokens,
    /// Of new passwords, see `password`.
    pub bcrypt_cost: u32,
    /// Without a token the common name of the client's certificate is the user: etcd's `--client-cert-auth`.
    pub certificate_names_user: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// Random and known to this process only.
    Simple { ttl: Duration },
    /// Signed, with the user and the revision of the accounts inside.
    Jwt(JwtOptions),
}

impl Default for Options {
    fn default() -> Self {
        Options {
            tokens: Tokens::Simple { ttl: sessions::TTL_DEFAULT },
            bcrypt_cost: password::COST_DEFAULT,
            certificate_names_user: false,
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("auth token {0:?}: the type is neither simple nor jwt")]
    Type(String),
    #[error("auth token: option {0:?} is not name=value")]
    NoValue(String),
    #[error("auth token: option {0} is given twice")]
    Twice(String),
    #[error("auth token: jwt has no option {0}; it has sign-method, pub-key, priv-key and ttl")]
    Unknown(String),
    #[error("auth token: jwt needs sign-method=, such as RS256")]
    NoMethod,
    #[error("auth token: ttl: {0}")]
    Ttl(String),
}

impl Tokens {
    /// Parses etcd's `--auth-token`: `simple`, or `jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=10m`.
    pub fn parse(
        text: &str,
        simple_ttl: Duration,
        parse_duration: impl Fn(&str) -> Result<Duration, String>,
    ) -> Result<Self, OptionsError> {
        let mut parts = text.split(',');
        match parts.next() {
            Some("" | "simple") => return Ok(Tokens::Simple { ttl: simple_ttl }),
            Some("jwt") => {}
            _ => return Err(OptionsError::Type(text.to_owned())),
        }
        let mut options = JwtOptions::default();
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').ok_or_else(|| OptionsError::NoValue(part.to_owned()))?;
            if seen.contains(&name) {
                return Err(OptionsError::Twice(name.to_owned()));
            }
            seen.push(name);
            match name {
                "sign-method" => options.method = value.to_owned(),
                "pub-key" => options.public_key = (!value.is_empty()).then(|| value.into()),
                "priv-key" => options.private_key = (!value.is_empty()).then(|| value.into()),
                "ttl" if value.is_empty() => {}
                "ttl" => options.ttl = parse_duration(value).map_err(OptionsError::Ttl)?,
                _ => return Err(OptionsError::Unknown(name.to_owned())),
            }
        }
        if options.method.is_empty() { Err(OptionsError::NoMethod) } else { Ok(Tokens::Jwt(options)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Tokens, OptionsError> {
        Tokens::parse(text, Duration::from_secs(7), |text| {
            text.strip_suffix('m')
                .and_then(|minutes| minutes.parse().ok())
                .map(|minutes: u64| Duration::from_secs(60 * minutes))
                .ok_or_else(|| format!("{text:?} is not a duration"))
        })
    }

    #[test]
    fn etcds_forms_are_understood() {
        assert_eq!(parse("simple"), Ok(Tokens::Simple { ttl: Duration::from_secs(7) }));
        let jwt = JwtOptions {
            method: "ES256".into(),
            public_key: Some("p.pem".into()),
            private_key: None,
            ttl: Duration::from_secs(600),
        };
        assert_eq!(parse("jwt,pub-key=p.pem,sign-method=ES256,ttl=10m"), Ok(Tokens::Jwt(jwt)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("jws"), Err(OptionsError::Type("jws".into())));
        assert_eq!(parse("jwt"), Err(OptionsError::NoMethod));
        assert_eq!(parse("jwt,sign-method"), Err(OptionsError::NoValue("sign-method".into())));
        assert_eq!(parse("jwt,ttl=1m,ttl=2m"), Err(OptionsError::Twice("ttl".into())));
        assert_eq!(parse("jwt,key=x"), Err(OptionsError::Unknown("key".into())));
        assert!(matches!(parse("jwt,ttl=soon"), Err(OptionsError::Ttl(_))));
    }
}
