//! Health of `""` and of every service (gRPC Health Checking Protocol): `NOT_SERVING` until the database has answered,
//! and again when draining begins. Must not say SERVING by default, as tonic-health does for `""`.

use tonic_health::{ServingStatus, server::HealthReporter};

/// The services that health is told for; `""` stands for the whole process.
const SERVICES: [&str; 4] =
    ["", "keystead.v1.KeyService", "keystead.v1.OrganizationService", "keystead.v1.AuditService"];

/// Parts that calls may do without for a while: what health says of them is detail, and `""` does not depend on it.
pub const DATABASE: &str = "keystead.database";
/// The counters that replicas share.
pub const LIMITS: &str = "keystead.limits";
const PARTS: [&str; 2] = [DATABASE, LIMITS];

/// Says whether we serve.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    /// Health that says `NOT_SERVING` of everything.
    pub async fn not_serving() -> Self {
        let health = Self { reporter: HealthReporter::new() };
        health.set(ServingStatus::NotServing).await;
        health
    }

    /// Tells whether calls are answered.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Tells whether a part is there: [`DATABASE`] or [`LIMITS`].
    pub async fn set_part(&self, part: &'static str, there: bool) {
        let status = if there { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(part, status).await;
    }

    /// Says `NOT_SERVING` for the last time, and ends the streams of those who watch: a shutdown waits for streams too.
    pub async fn end(&mut self) {
        self.set(ServingStatus::NotServing).await;
        for service in SERVICES.into_iter().chain(PARTS) {
            self.reporter.clear_service_status(service).await;
        }
        // Whoever asks once more is still told.
        self.set(ServingStatus::NotServing).await;
    }

    async fn set(&self, status: ServingStatus) {
        for service in SERVICES.into_iter().chain(PARTS) {
            self.reporter.set_service_status(service, status).await;
        }
    }

    pub(super) fn service(
        &self,
    ) -> tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health + use<>> {
        let service = tonic_health::server::HealthService::from_health_reporter(self.reporter.clone());
        tonic_health::pb::health_server::HealthServer::new(service)
    }
}
