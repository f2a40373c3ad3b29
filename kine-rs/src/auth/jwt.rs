//! Signed tokens: any member that has the key can tell whose they are, and nothing is kept.
//!
//! A token carries the revision of the accounts at the login: after any change of users or roles it is refused as old, and
//! the client logs in again. Methods and claims are etcd's. Files are read when the server starts and never again.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};

/// etcd's time to live of a signed token unless told otherwise.
pub const TTL_DEFAULT: Duration = Duration::from_secs(300);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    /// RS, PS, ES or HS with 256, 384 or 512, or `EdDSA`.
    pub method: String,
    /// Enough to check tokens that others sign.
    pub public_key: Option<PathBuf>,
    /// PEM; for HS the secret itself.
    pub private_key: Option<PathBuf>,
    pub ttl: Duration,
}

impl Default for JwtOptions {
    fn default() -> Self {
        JwtOptions { method: String::new(), public_key: None, private_key: None, ttl: TTL_DEFAULT }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    #[error(
        "auth token: sign-method {0:?} is not known; use RS256, PS256, ES256, EdDSA, HS256 or a longer one"
    )]
    Method(String),
    #[error("auth token: jwt needs pub-key= or priv-key= (HS methods: priv-key=)")]
    NoKey,
    #[error("auth token: {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("auth token: {path} is not a PEM key for {method}: {detail}")]
    Key { path: PathBuf, method: String, detail: String },
    #[error("auth token: {public} is not the public key of {private}")]
    Mismatch { public: PathBuf, private: PathBuf },
}

/// The server has only the public key and can't sign.
#[derive(Debug, thiserror::Error)]
#[error("the key can only check tokens")]
pub struct VerifyOnly;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub user: String,
    pub auth_revision: u64,
}

pub struct Jwt {
    method: String,
    signer: Option<Signer>,
    verifier: Verifier,
    ttl: Duration,
}

/// A family of methods with its hash.
enum Method {
    Rsa(&'static dyn signature::RsaEncoding, &'static signature::RsaParameters),
    Ecdsa(&'static signature::EcdsaSigningAlgorithm, &'static signature::EcdsaVerificationAlgorithm),
    Ed25519,
    Hmac(hmac::Algorithm),
}

enum Signer {
    Rsa(RsaKeyPair, &'static dyn signature::RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Hmac(Box<hmac::Key>),
}

enum Verifier {
    PublicKey(UnparsedPublicKey<Vec<u8>>),
    Hmac(Box<hmac::Key>),
}

impl Jwt {
    pub fn load(options: &JwtOptions) -> Result<Self, JwtError> {
        let method =
            Method::named(&options.method).ok_or_else(|| JwtError::Method(options.method.clone()))?;
        let rejected = |path: &Path, detail: String| JwtError::Key {
            path: path.into(),
            method: options.method.clone(),
            detail,
        };
        let signer = match &options.private_key {
            Some(path) => Some(method.signer(&read(path)?).map_err(|detail| rejected(path, detail))?),
            None => None,
        };
        let verifier = match (&options.public_key, &signer) {
            (_, Some(Signer::Hmac(key))) => Verifier::Hmac(key.clone()),
            (Some(path), _) => {
                let key = public_key(&read(path)?).map_err(|detail| rejected(path, detail))?;
                method.verifier(key).ok_or(JwtError::NoKey)?
            }
            (None, Some(signer)) => method.verifier(signer.public_key()).ok_or(JwtError::NoKey)?,
            (None, None) => return Err(JwtError::NoKey),
        };
        let jwt = Jwt { method: options.method.clone(), signer, verifier, ttl: options.ttl };
        jwt.check_pair(options)?;
        Ok(jwt)
    }

    /// A token is of no use when the key that checks it is not that of the key that signed it.
    fn check_pair(&self, options: &JwtOptions) -> Result<(), JwtError> {
        let (Some(signer), Some(public), Some(private)) =
            (&self.signer, &options.public_key, &options.private_key)
        else {
            return Ok(());
        };
        let probe = b"probe";
        let matching = signer.sign(probe).is_some_and(|signature| self.verifier.accepts(probe, &signature));
        if matching {
            Ok(())
        } else {
            Err(JwtError::Mismatch { public: public.clone(), private: private.clone() })
        }
    }

    pub fn sign(&self, claims: &Claims, now: SystemTime) -> Result<String, VerifyOnly> {
        let signer = self.signer.as_ref().ok_or(VerifyOnly)?;
        let header = json!({"alg": self.method, "typ": "JWT"});
        let claims = json!({
            "username": claims.user,
            "revision": claims.auth_revision,
            "exp": unix_seconds(now + self.ttl) as u64,
        });
        let encode = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = signer.sign(message.as_bytes()).ok_or(VerifyOnly)?;
        Ok(format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }

    /// What the token claims, if we signed it (or whoever has the key) and it is valid now.
    pub fn verify(&self, token: &str, now: SystemTime) -> Option<Claims> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
        let json = |part: &str| serde_json::from_slice::<Value>(&decode(part)?).ok();
        // The method is ours to choose, not the token's.
        let known = json(header)?.get("alg")?.as_str()? == self.method;
        if !known || !self.verifier.accepts(message.as_bytes(), &decode(signature)?) {
            return None;
        }
        let claims = json(claims)?;
        let now = unix_seconds(now);
        let time = |name: &str| claims.get(name).map(|value| value.as_f64().unwrap_or(f64::NAN));
        let valid = time("exp").is_none_or(|exp| now < exp) && time("nbf").is_none_or(|nbf| now >= nbf);
        if !valid {
            return None;
        }
        Some(Claims {
            user: claims.get("username")?.as_str()?.to_owned(),
            auth_revision: claims.get("revision")?.as_f64()? as u64,
        })
    }
}

impl Method {
    fn named(name: &str) -> Option<Self> {
        use signature as s;
        Some(match name {
            "RS256" => Method::Rsa(&s::RSA_PKCS1_SHA256, &s::RSA_PKCS1_2048_8192_SHA256),
            "RS384" => Method::Rsa(&s::RSA_PKCS1_SHA384, &s::RSA_PKCS1_2048_8192_SHA384),
            "RS512" => Method::Rsa(&s::RSA_PKCS1_SHA512, &s::RSA_PKCS1_2048_8192_SHA512),
            "PS256" => Method::Rsa(&s::RSA_PSS_SHA256, &s::RSA_PSS_2048_8192_SHA256),
            "PS384" => Method::Rsa(&s::RSA_PSS_SHA384, &s::RSA_PSS_2048_8192_SHA384),
            "PS512" => Method::Rsa(&s::RSA_PSS_SHA512, &s::RSA_PSS_2048_8192_SHA512),
            "ES256" => Method::Ecdsa(&s::ECDSA_P256_SHA256_FIXED_SIGNING, &s::ECDSA_P256_SHA256_FIXED),
            "ES384" => Method::Ecdsa(&s::ECDSA_P384_SHA384_FIXED_SIGNING, &s::ECDSA_P384_SHA384_FIXED),
            "ES512" => Method::Ecdsa(&s::ECDSA_P521_SHA512_FIXED_SIGNING, &s::ECDSA_P521_SHA512_FIXED),
            "EdDSA" => Method::Ed25519,
            "HS256" => Method::Hmac(hmac::HMAC_SHA256),
            "HS384" => Method::Hmac(hmac::HMAC_SHA384),
            "HS512" => Method::Hmac(hmac::HMAC_SHA512),
            _ => return None,
        })
    }

    fn signer(&self, file: &[u8]) -> Result<Signer, String> {
        let der = |file| pem(file, |label| label.ends_with("PRIVATE KEY")).map(|pem| pem.contents);
        let signer = match self {
            Method::Rsa(encoding, _) => {
                let der = der(file)?;
                RsaKeyPair::from_pkcs8(&der)
                    .or_else(|_| RsaKeyPair::from_der(&der))
                    .map(|pair| Signer::Rsa(pair, *encoding))
            }
            Method::Ecdsa(algorithm, _) => {
                let der = der(file)?;
                EcdsaKeyPair::from_pkcs8(algorithm, &der)
                    .or_else(|_| EcdsaKeyPair::from_private_key_der(algorithm, &der))
                    .map(Signer::Ecdsa)
            }
            Method::Ed25519 => Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der(file)?).map(Signer::Ed25519),
            Method::Hmac(_) if file.is_empty() => return Err("the file is empty".to_owned()),
            Method::Hmac(algorithm) => Ok(Signer::Hmac(Box::new(hmac::Key::new(*algorithm, file)))),
        };
        signer.map_err(|error| error.to_string())
    }

    /// `None`: this method has no public keys.
    fn verifier(&self, key: Vec<u8>) -> Option<Verifier> {
        let algorithm: &'static dyn signature::VerificationAlgorithm = match self {
            Method::Rsa(_, parameters) => *parameters,
            Method::Ecdsa(_, algorithm) => *algorithm,
            Method::Ed25519 => &signature::ED25519,
            Method::Hmac(_) => return None,
        };
        Some(Verifier::PublicKey(UnparsedPublicKey::new(algorithm, key)))
    }
}

impl Signer {
    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Signer::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).ok()?;
                Some(signature)
            }
            Signer::Ecdsa(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Signer::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
            Signer::Hmac(key) => Some(hmac::sign(key, message).as_ref().to_vec()),
        }
    }

    fn public_key(&self) -> Vec<u8> {
        match self {
            Signer::Rsa(pair, _) => pair.public_key().as_ref().to_vec(),
            Signer::Ecdsa(pair) => pair.public_key().as_ref().to_vec(),
            Signer::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
            Signer::Hmac(_) => Vec::new(),
        }
    }
}

impl Verifier {
    fn accepts(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Verifier::PublicKey(key) => key.verify(message, signature).is_ok(),
            Verifier::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

/// The key of a public key or certificate file.
fn public_key(file: &[u8]) -> Result<Vec<u8>, String> {
    let pem = pem(file, |label| label.ends_with("PUBLIC KEY") || label == "CERTIFICATE")?;
    if pem.label != "CERTIFICATE" {
        return Ok(pem.contents);
    }
    let (_, certificate) = X509Certificate::from_der(&pem.contents).map_err(|error| error.to_string())?;
    Ok(certificate.public_key().raw.to_vec())
}

fn pem(file: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Pem, String> {
    let mut blocks = Pem::iter_from_buffer(file).filter_map(Result::ok);
    blocks.find(|pem| wanted(&pem.label)).ok_or_else(|| "it has no such PEM block".to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, JwtError> {
    std::fs::read(path).map_err(|error| JwtError::Read { path: path.into(), error })
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
    use aws_lc_rs::rsa::KeySize;

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Files { dir: tempfile::tempdir().unwrap() }
        }

        fn pem(&self, name: &str, label: &str, der: &[u8]) -> PathBuf {
            let body = base64::prelude::BASE64_STANDARD.encode(der);
            let lines: Vec<&str> =
                body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
            let text = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
            self.raw(name, text.as_bytes())
        }

        fn raw(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        }

        fn rsa(&self, name: &str) -> (PathBuf, PathBuf) {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
            let private: Pkcs8V1Der = pair.as_der().unwrap();
            let public: PublicKeyX509Der = pair.public_key().as_der().unwrap();
            let private = self.pem(&format!("{name}.key"), "PRIVATE KEY", private.as_ref());
            (private, self.pem(&format!("{name}.pub"), "PUBLIC KEY", public.as_ref()))
        }

        fn ecdsa(&self, algorithm: &'static signature::EcdsaSigningAlgorithm) -> (PathBuf, PathBuf) {
            let pair = EcdsaKeyPair::generate(algorithm).unwrap();
            let private = pair.to_pkcs8v1().unwrap();
            let public: PublicKeyX509Der = pair.public_key().as_der().unwrap();
            let private = self.pem("ec.key", "PRIVATE KEY", private.as_ref());
            (private, self.pem("ec.pub", "PUBLIC KEY", public.as_ref()))
        }
    }

    fn options(method: &str, private: Option<&PathBuf>, public: Option<&PathBuf>) -> JwtOptions {
        JwtOptions {
            method: method.into(),
            public_key: public.cloned(),
            private_key: private.cloned(),
            ttl: TTL_DEFAULT,
        }
    }

    fn round_trip(signing: &JwtOptions, checking: &JwtOptions) {
        let (signing, checking) = (Jwt::load(signing).unwrap(), Jwt::load(checking).unwrap());
        let claims = Claims { user: "alice".into(), auth_revision: 7 };
        let now = SystemTime::now();
        let token = signing.sign(&claims, now).unwrap();
        assert_eq!(checking.verify(&token, now), Some(claims.clone()));
        assert_eq!(checking.verify(&token, now + TTL_DEFAULT + Duration::from_secs(1)), None, "expired");
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (header, _) = message.split_once('.').unwrap();
        let forged = BASE64_URL_SAFE_NO_PAD.encode(r#"{"username":"root","revision":7}"#);
        assert_eq!(checking.verify(&format!("{header}.{forged}.{signature}"), now), None, "forged");
        let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        assert_eq!(checking.verify(&format!("{none}.{forged}."), now), None, "unsigned");
        assert_eq!(checking.verify("nonsense", now), None);
    }

    #[test]
    fn rsa_tokens_are_checked_with_either_key() {
        let files = Files::new();
        let (private, public) = files.rsa("one");
        for method in ["RS256", "RS512", "PS256"] {
            let signing = options(method, Some(&private), None);
            round_trip(&signing, &signing);
            round_trip(&signing, &options(method, None, Some(&public)));
        }
    }

    #[test]
    fn ecdsa_tokens_are_checked_with_either_key() {
        let methods = [
            ("ES256", &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            ("ES384", &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            ("ES512", &signature::ECDSA_P521_SHA512_FIXED_SIGNING),
        ];
        for (method, algorithm) in methods {
            let files = Files::new();
            let (private, public) = files.ecdsa(algorithm);
            let signing = options(method, Some(&private), Some(&public));
            round_trip(&signing, &options(method, None, Some(&public)));
        }
    }

    #[test]
    fn a_shared_secret_and_edwards_curves_sign_too() {
        let files = Files::new();
        let secret = files.raw("secret", b"a secret of some length");
        let signing = options("HS256", Some(&secret), None);
        round_trip(&signing, &signing);
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let private = files.pem("ed.key", "PRIVATE KEY", document.as_ref());
        let signing = options("EdDSA", Some(&private), None);
        round_trip(&signing, &signing);
    }

    #[test]
    fn keys_that_do_not_belong_together_are_refused() {
        let files = Files::new();
        let ((private, public), (_, other)) = (files.rsa("one"), files.rsa("two"));
        assert!(Jwt::load(&options("RS256", Some(&private), Some(&public))).is_ok());
        let mismatch = Jwt::load(&options("RS256", Some(&private), Some(&other)));
        assert!(matches!(mismatch, Err(JwtError::Mismatch { .. })));
        assert!(matches!(Jwt::load(&options("RS256", None, None)), Err(JwtError::NoKey)));
        assert!(matches!(Jwt::load(&options("none", Some(&private), None)), Err(JwtError::Method(_))));
        assert!(matches!(Jwt::load(&options("ES256", Some(&private), None)), Err(JwtError::Key { .. })));
        let verifier = Jwt::load(&options("RS256", None, Some(&public))).unwrap();
        let claims = Claims { user: "alice".into(), auth_revision: 7 };
        assert!(verifier.sign(&claims, SystemTime::now()).is_err());
    }
}
