//! Passwords and their bcrypt hashes. Slow on purpose: to be called where blocking is allowed.

/// etcd's bounds and default of `--bcrypt-cost`.
pub const COST_MIN: u32 = 4;
pub const COST_MAX: u32 = 31;
pub const COST_DEFAULT: u32 = 10;
/// bcrypt ignores what is longer.
const BYTES_MAX: usize = 72;

#[derive(Debug, thiserror::Error)]
pub enum HashError {
    #[error("a password has at most {BYTES_MAX} bytes")]
    TooLong,
    #[error("the password can't be hashed: {0}")]
    Bcrypt(bcrypt::BcryptError),
}

pub fn hash(password: &str, cost: u32) -> Result<String, HashError> {
    if password.len() > BYTES_MAX {
        return Err(HashError::TooLong);
    }
    bcrypt::hash(password, cost).map_err(HashError::Bcrypt)
}

/// Whether the hash is one of this password; no hash is one of no password.
pub fn matches(password: &str, hash: &[u8]) -> bool {
    std::str::from_utf8(hash).is_ok_and(|hash| bcrypt::verify(password, hash).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_matches_its_password_and_no_other() {
        let hash = hash("secret", COST_MIN).unwrap();
        assert!(matches("secret", hash.as_bytes()));
        assert!(!matches("Secret", hash.as_bytes()));
        assert!(!matches("", b""));
        // A hash that another program made.
        assert!(matches("abc", b"$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i"));
    }

    #[test]
    fn a_password_that_bcrypt_would_cut_off_is_refused() {
        assert!(matches!(hash(&"x".repeat(73), COST_MIN), Err(HashError::TooLong)));
        assert!(hash(&"x".repeat(72), COST_MIN).is_ok());
    }
}
