//! `simulate`: the simulator alone, for trying the service without an account.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Args;

use super::{WHOLE, say};
use crate::clock::SystemClock;
use crate::shutdown;
use crate::sim::{FaultLevel, SimSettings, Simulator};

#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port; 0 picks a free one
    #[arg(long, default_value_t = 9090)]
    port: u16,
    /// Number of chats in the account
    #[arg(long, default_value_t = 500)]
    sessions: u32,
    /// Total number of messages
    #[arg(long, default_value_t = 200_000)]
    messages: u64,
    /// How many months back the messages go (1 to 6)
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=6))]
    months: u32,
    /// Requests allowed per second before a 429; 0 is unlimited
    #[arg(long, default_value_t = 20)]
    qps: u32,
    /// Requests allowed per day before a 429; 0 is unlimited
    #[arg(long, default_value_t = 0)]
    daily_limit: u64,
    /// Delay before each answer, in milliseconds
    #[arg(long, default_value_t = 150)]
    latency_ms: u64,
    /// How much that delay varies in either direction, in milliseconds
    #[arg(long, default_value_t = 0)]
    jitter_ms: u64,
    /// Level of random faults
    #[arg(long, value_enum, default_value_t = FaultLevel::None)]
    faults: FaultLevel,
    /// Random seed: on the same UTC day, the same number gives the same account and faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Lifetime of an access token in seconds
    #[arg(long, default_value_t = 3_600)]
    token_ttl: u64,
    /// Share of all messages that are in the first chat
    #[arg(long, default_value_t = 0.15, value_parser = share)]
    heaviest_share: f64,
    /// Factor by which messages are longer than usual
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    text_scale: u32,
    /// Answer 404, not an empty page, when a chat has no messages in the days requested
    #[arg(long)]
    empty_not_found: bool,
    /// Serve the messages of a chat newest first
    #[arg(long)]
    newest_first: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "must be a number from 0 to 1".to_owned())
}

pub(super) async fn run(args: &SimulateArgs) -> anyhow::Result<u8> {
    let settings = SimSettings {
        listen: SocketAddr::new(args.host, args.port),
        seed: args.seed,
        sessions: args.sessions,
        messages: args.messages,
        months: args.months,
        qps: args.qps,
        daily_limit: args.daily_limit,
        latency: Duration::from_millis(args.latency_ms),
        latency_jitter: Duration::from_millis(args.jitter_ms),
        faults: args.faults,
        token_ttl: Duration::from_secs(args.token_ttl),
        heaviest_share: args.heaviest_share,
        text_scale: args.text_scale,
        empty_is_not_found: args.empty_not_found,
        newest_first: args.newest_first,
        ..SimSettings::default()
    };
    let stop = shutdown::on_signal(SystemClock::shared())?;
    let credentials = [&settings.account_id, &settings.client_id, &settings.client_secret].map(String::clone);
    let address = settings.listen;
    let simulator = Simulator::start(settings).await;
    let simulator = simulator.map_err(|error| anyhow::anyhow!("{address} cannot be used: {error}"))?;
    let [account, client, secret] = credentials;
    say("# a simulated Zoom account is running; to use it:");
    say(format_args!("export ZOOM_API_BASE_URL={}", simulator.api_base_url()));
    say(format_args!("export ZOOM_OAUTH_BASE_URL={}", simulator.oauth_base_url()));
    say(format_args!("export ZOOM_ACCOUNT_ID={account} ZOOM_CLIENT_ID={client} ZOOM_CLIENT_SECRET={secret}"));
    say(format_args!(
        "# messages from {} to {}",
        simulator.dataset().first_day(),
        simulator.dataset().last_day()
    ));
    stop.cancelled().await;
    let stats = simulator.stats();
    let seconds = match (stats.first_request, stats.last_request) {
        (Some(first), Some(last)) => last.duration_since(first).as_secs_f64(),
        _ => 0.0,
    };
    say(format_args!(
        "{{\"requests\":{},\"rate_limited\":{},\"faults\":{},\"pages_served\":{},\"max_in_one_second\":{},\"seconds\":{seconds:.3}}}",
        stats.requests, stats.rate_limited, stats.faults, stats.pages_served, stats.max_in_one_second
    ));
    simulator.shutdown().await;
    Ok(WHOLE)
}
