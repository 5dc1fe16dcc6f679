//! `check`: is the account ready? One line per step.

use clap::Args;

use super::{FAILED, WHOLE, say};
use crate::app::AppError;
use crate::clock::SystemClock;
use crate::config::ZoomArgs;
use crate::extract::Account;
use crate::extract::check::{Step, check};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) zoom: ZoomArgs,
}

pub(super) async fn run(args: &CheckArgs) -> anyhow::Result<u8> {
    let clock = SystemClock::shared();
    let account = Account::new(args.zoom.settings()?, clock.clone()).map_err(AppError::Client)?;
    let mut is_ready = true;
    let tell = |Step { name, ok, elapsed_ms, detail, help }: Step| {
        is_ready &= ok;
        say(format_args!("{} {name:<9} {elapsed_ms:>6} ms  {detail}", if ok { "ok  " } else { "FAIL" }));
        if let Some(help) = help {
            say(format_args!("     -> {help}"));
        }
    };
    check(&account, &clock, tell).await;
    if is_ready {
        say("the account is ready");
        Ok(WHOLE)
    } else {
        Ok(FAILED)
    }
}
