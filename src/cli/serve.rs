//! `serve`: runs the service until a signal.

use clap::Args;

use super::WHOLE;
use crate::app::App;
use crate::clock::SystemClock;
use crate::config::{ServiceArgs, ZoomArgs};
use crate::shutdown;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    service: ServiceArgs,
    #[command(flatten)]
    pub(super) zoom: ZoomArgs,
}

pub(super) async fn run(args: &ServeArgs) -> anyhow::Result<u8> {
    let settings = args.service.settings(&args.zoom)?;
    let clock = SystemClock::shared();
    let stop = shutdown::on_signal(clock.clone())?;
    let app = App::start(settings, clock).await?;
    tracing::info!("documentation at http://{}/docs/", app.address);
    stop.cancelled().await;
    app.shut_down().await;
    Ok(WHOLE)
}
