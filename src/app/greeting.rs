//! What `serve --dev` says at its start: a new database is initialized, and a newcomer gets lines to paste.
//! The admin secret goes to standard output this once, and nowhere else.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
};

use super::AppError;
use crate::{
    config::Config,
    service::{self, Context, ServiceError},
};

/// Initializes a new database and prints what a newcomer can paste.
pub(super) async fn greet(config: &Config, context: &Arc<Context>, address: SocketAddr) -> Result<(), AppError> {
    let secret = match service::init(context).await {
        Ok(secret) => Some(secret),
        Err(ServiceError::FailedPrecondition { reason: "ALREADY_INITIALIZED", .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let plain = if config.server.tls.is_some() { "" } else { " -plaintext" };
    let mut out = io::stdout().lock();
    writeln!(out, "Keystead serves on {address}. Paste into another terminal:\n")?;
    match &secret {
        Some(secret) => writeln!(out, "export KEYSTEAD_TOKEN={}", secret.expose())?,
        None => writeln!(out, "# KEYSTEAD_TOKEN is the admin secret that was printed at the first start.")?,
    }
    let call = format!("grpcurl{plain} -H \"authorization: Bearer $KEYSTEAD_TOKEN\"");
    let service = "keystead.v1";
    writeln!(
        out,
        "\n{call} -d '{{\"name\":\"Acme\",\"slug\":\"acme\"}}' {address} {service}.OrganizationService/CreateOrganization"
    )?;
    writeln!(
        out,
        "{call} -d '{{\"organization_id\":\"<id>\",\"name\":\"first\",\"environment\":\"ENVIRONMENT_LIVE\"}}' {address} {service}.KeyService/CreateKey"
    )?;
    writeln!(out, "{call} -d '{{\"secret\":\"<secret>\"}}' {address} {service}.KeyService/VerifyKey")?;
    writeln!(out, "{call} -d '{{\"key_id\":\"<key id>\"}}' {address} {service}.KeyService/RevokeKey\n")?;
    out.flush()?;
    Ok(())
}
