//! `health`: asks a running service whether it is ready.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::{FAILED, WHOLE, say};
use crate::config;

#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// Where the service listens
    #[arg(long, env = "LISTEN_ADDR", value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = config::address)]
    listen_addr: SocketAddr,
}

pub(super) async fn run(args: &HealthArgs) -> anyhow::Result<u8> {
    let mut address = args.listen_addr;
    // A wildcard address cannot be asked; loopback can.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let client = reqwest::Client::builder().timeout(Duration::from_secs(4)).no_proxy().build()?;
    match client.get(format!("http://{address}/readyz")).send().await {
        Ok(response) if response.status().is_success() => {
            say("ready");
            Ok(WHOLE)
        }
        Ok(response) => {
            let status = response.status();
            let problem: serde_json::Value = response.json().await.unwrap_or_default();
            let why = problem["detail"].as_str().map_or_else(|| status.to_string(), str::to_owned);
            say(format_args!("not ready: {why}"));
            Ok(FAILED)
        }
        Err(_) => {
            say(format_args!("no answer from {address}"));
            Ok(FAILED)
        }
    }
}
