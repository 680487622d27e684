//! TLS with rustls: certificate, key and, for mTLS, the CA that client certificates must come from, read from files
//! and read again when one of them changes. A bad new file keeps the old ones and says so.
//! TLS 1.2 and 1.3, `h2` alone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

/// How often the files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{} cannot be read", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is not a PEM file of what it should hold", .path.display())]
    Pem { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("the certificate and key cannot be used")]
    Rustls(#[from] rustls::Error),
    #[error("the client CA cannot be used")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
}

/// The TLS settings of the listener, as of the last good reading of the files.
pub struct TlsReloader {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    current: RwLock<Arc<ServerConfig>>,
}

impl TlsReloader {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// See [`TlsError`]: at start, a bad file is fatal.
    pub fn load(certificate: PathBuf, key: PathBuf, client_ca: Option<PathBuf>) -> Result<Self, TlsError> {
        let current = RwLock::new(Arc::new(read(&certificate, &key, client_ca.as_deref())?));
        Ok(Self { certificate, key, client_ca, current })
    }

    /// An acceptor with the present settings.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Reads the files again whenever one of them changes, for ever.
    pub async fn follow(&self) {
        let mut seen = self.stamps();
        let mut ticks = tokio::time::interval(RELOAD_INTERVAL);
        loop {
            ticks.tick().await;
            let now = self.stamps();
            if now == seen {
                continue;
            }
            seen = now;
            match read(&self.certificate, &self.key, self.client_ca.as_deref()) {
                Ok(config) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
                    tracing::info!("the TLS files were read again");
                }
                Err(error) => tracing::error!(error = %error, "the new TLS files are bad; the old ones stay in use"),
            }
        }
    }

    fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let paths = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        let stamp = |path: &PathBuf| fs::metadata(path).and_then(|data| Ok((data.modified()?, data.len()))).ok();
        paths.into_iter().flatten().map(stamp).collect()
    }
}

fn read(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<ServerConfig, TlsError> {
    let chain = certificates(certificate)?;
    let key_bytes = bytes(key)?;
    let key_pem =
        PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|source| TlsError::Pem { path: key.to_owned(), source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?,
            )
        }
    };
    let mut config = builder.with_single_cert(chain, key_pem)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = bytes(path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let refused = |source| TlsError::Pem { path: path.to_owned(), source };
    let certificates = read.map_err(refused)?;
    if certificates.is_empty() {
        return Err(refused(rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}
