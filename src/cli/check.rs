//! `check`: is the account ready? One line a step.

use clap::Args;

use super::{FAILED, WHOLE, say};
use crate::app::AppError;
use crate::clock::SystemClock;
use crate::config::ZoomArgs;
use crate::extract::Account;
use crate::extract::check::check;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) zoom: ZoomArgs,
}

pub(super) async fn run(args: &CheckArgs) -> anyhow::Result<u8> {
    let clock = SystemClock::shared();
    let account = Account::new(args.zoom.settings()?, clock.clone()).map_err(AppError::Client)?;
    let steps = check(&account, &clock).await;
    for step in &steps {
        let mark = if step.ok { "ok  " } else { "FAIL" };
        say(format_args!("{mark} {:<9} {:>6} ms  {}", step.name, step.elapsed_ms, step.detail));
        if let Some(help) = &step.help {
            say(format_args!("     -> {help}"));
        }
    }
    if steps.iter().all(|step| step.ok) {
        say("the account is ready");
        Ok(WHOLE)
    } else {
        Ok(FAILED)
    }
}
