//! `list_keys`: the first page of an organization's million keys against the last one, each of a thousand. A page is
//! found by where the one before it ended, so how many came before must not matter.

use std::time::Instant;

use keystead::proto::v1::ListKeysRequest;

use crate::support::{
    Failure,
    compare::{Pairs, print_ratio, title},
    database::{Database, Engine},
    keys::{self, Limits},
    plan::Plan,
    server::{Keys, Server},
};

/// Keys of a page.
const PAGE: usize = 1000;

/// Runs the benchmark.
pub async fn run(plan: Plan) -> Result<(), Failure> {
    title("list_keys", "the last page of a million keys against the first");
    for engine in Engine::ALL {
        on(engine, plan).await?;
    }
    Ok(())
}

async fn on(engine: Engine, plan: Plan) -> Result<(), Failure> {
    let database = Database::new(engine, plan)?;
    let server = Server::start(&database, &[]).await?;
    // The model is a key of the organization too.
    let keys = keys::make(&server, &database, plan.sized(1_000_000, 3000) - 1, Limits::None).await?;
    let first = ListKeysRequest {
        organization_id: keys.organization_id,
        page_size: i32::try_from(PAGE)?,
        ..Default::default()
    };
    let mut last = first.clone();
    let mut client = server.keys()?;
    loop {
        let next = client.list_keys(last.clone()).await?.into_inner().next_page_token;
        if next.is_empty() {
            break;
        }
        last.page_token = next;
    }
    let (ours, theirs) = (client.clone(), client);
    let pairs = Pairs::alternate(
        plan.repeats(),
        async || milliseconds(ours.clone(), &last).await,
        async || milliseconds(theirs.clone(), &first).await,
    )
    .await?;
    print_ratio(engine.name(), "ms", "first page", pairs.spreads(|time| *time), "0.8 to 1.2");
    Ok(())
}

async fn milliseconds(mut client: Keys, request: &ListKeysRequest) -> Result<f64, Failure> {
    let begun = Instant::now();
    let page = client.list_keys(request.clone()).await?.into_inner();
    let took = begun.elapsed();
    if page.keys.len() == PAGE { Ok(took.as_secs_f64() * 1000.0) } else { Err("a page that is not full".into()) }
}
