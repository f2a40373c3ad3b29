//! `k0s config create` and `k0s config validate`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::config::{self, Host, Overrides, ShowImages, Source};
use crate::paths::DEFAULT_DATA_DIR;

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print the default configuration
    Create {
        /// Print the images, too
        #[arg(long)]
        include_images: bool,
    },
    /// Check a configuration file; prints nothing when it is good
    Validate {
        /// Configuration file; - is standard input
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// The older `validate config`.
#[derive(Debug, Subcommand)]
pub enum Validate {
    Config {
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
}

impl Config {
    pub fn run(self) -> anyhow::Result<()> {
        let host = Host::detect()?;
        match self {
            Config::Create { include_images } => {
                let images = if include_images { ShowImages::Yes } else { ShowImages::No };
                super::print(&config::create(&host, images))
            }
            Config::Validate { config } => {
                let overrides = Overrides { storage: None, data_dir: Path::new(DEFAULT_DATA_DIR) };
                let loaded = config::load(&Source::from_flag(Some(&config)), &overrides, &host)?;
                for warning in loaded.warnings {
                    eprintln!("Warning: {warning}");
                }
                Ok(())
            }
        }
    }
}
