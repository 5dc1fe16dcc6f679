//! The connection to Zoom: TLS with the system's certificate store, HTTP/1.1 whatever is offered, a proxy where one is
//! configured.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::CertifiedKey;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use zoom_chat_reports::app::AppSettings;
use zoom_chat_reports::sim::{FaultAnswer, Match, SimSettings, Simulator};

use crate::harness::{World, always, eventually, fault};
use crate::process::{connected, run};

/// Each of the two limits by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_is_asked_for_again() {
    let (soon, never) = (Duration::from_millis(500), Duration::from_secs(3_600));
    for (whole, idle) in [(soon, never), (never, soon)] {
        let timeouts = |settings: &mut AppSettings| {
            (settings.zoom.request_timeout, settings.zoom.idle_timeout) = (whole, idle);
        };
        let sim = SimSettings { sessions: 10, messages: 500, ..SimSettings::default() };
        let world = World::with(sim, timeouts).await;
        world.sim.script(fault(Match::Messages, 0, 1, FaultAnswer::Hang));
        assert_eq!(world.run(&world.one_window().0).await.0["state"], "completed", "{whole:?} {idle:?}");
    }
}

/// However many chains of pages a job follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_requests_are_under_way_than_are_allowed() {
    let sim = SimSettings { sessions: 40, messages: 400, ..SimSettings::default() };
    let world = World::with(sim, |settings| settings.zoom.in_flight = 3).await;
    world.sim.script(always(Match::Messages, FaultAnswer::Hang));
    world.submit(&world.one_window().0).await;
    eventually("three are under way", || world.sim.stats().message_requests >= 3).await;
    world.clock.sleep(Duration::from_millis(300)).await;
    assert_eq!(world.sim.stats().message_requests, 3);
}

type Told = Arc<Mutex<Vec<String>>>;

/// Accepts connections and serves each on a task of its own.
async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// A TLS server that offers HTTP/2 first, in front of a simulator.
struct Front {
    sim: Simulator,
    port: u16,
    home: TempDir,
    /// The protocol negotiated on each connection.
    spoken: Told,
}

impl Front {
    async fn start(host: &str) -> Self {
        let sim = SimSettings { sessions: 12, messages: 300, ..SimSettings::default() };
        let sim = Simulator::start(sim).await.unwrap();
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        let home = TempDir::new().unwrap();
        std::fs::write(home.path().join("store.pem"), cert.pem()).unwrap();
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(tls));
        let spoken = Told::default();
        let (told, behind) = (spoken.clone(), sim.oauth_base_url().replace("http://", ""));
        let port = listen(move |stream| {
            let (tls, told, behind) = (tls.clone(), told.clone(), behind.clone());
            async move {
                let Ok(mut stream) = tls.accept(stream).await else { return };
                let protocol = stream.get_ref().1.alpn_protocol().unwrap_or_default();
                told.lock().unwrap().push(String::from_utf8_lossy(protocol).into_owned());
                let mut behind = TcpStream::connect(behind).await.unwrap();
                // Either end may hang up.
                let _ = copy_bidirectional(&mut stream, &mut behind).await;
            }
        })
        .await;
        Self { sim, port, home, spoken }
    }

    /// A `check` command that calls it at this origin and trusts its certificate.
    fn check(&self, origin: &str) -> Command {
        let mut check = connected(&self.sim, self.home.path());
        check
            .arg("check")
            .env("ZOOM_API_BASE_URL", format!("{origin}/v2"))
            .env("ZOOM_OAUTH_BASE_URL", origin)
            .env("SSL_CERT_FILE", self.home.path().join("store.pem"));
        check
    }
}

/// Starts a proxy that forwards every connection to `port`; returns its URL and the requests it got.
async fn proxy(port: u16) -> (String, Told) {
    let asked = Told::default();
    let told = asked.clone();
    let own = listen(move |stream| {
        let told = told.clone();
        async move {
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            told.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let mut behind = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let _ = copy_bidirectional(&mut stream, &mut behind).await;
        }
    })
    .await;
    (format!("http://127.0.0.1:{own}"), asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_against_the_store_and_http_1_is_spoken_whatever_is_offered() {
    let front = Front::start("localhost").await;
    let origin = format!("https://localhost:{}", front.port);
    let (code, out, err) = run(front.check(&origin)).await;
    assert_eq!(code, 0, "{out}{err}");
    let spoken = std::mem::take(&mut *front.spoken.lock().unwrap());
    assert!(!spoken.is_empty() && spoken.iter().all(|protocol| protocol == "http/1.1"), "{spoken:?}");

    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(front.home.path().join("store.pem"), other.cert.pem()).unwrap();
    let (code, out, err) = run(front.check(&origin)).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("certificate") && err.is_empty(), "it is said once: {out}{err}");
    assert!(front.spoken.lock().unwrap().is_empty(), "nothing was said to whoever that is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_used_where_one_is_configured() {
    let front = Front::start("zoom.invalid").await;
    let (proxy, asked) = proxy(front.port).await;
    let mut through = front.check("https://zoom.invalid");
    through.env("HTTPS_PROXY", &proxy);
    let (code, out, err) = run(through).await;
    assert_eq!(code, 0, "{out}{err}");
    let calls = std::mem::take(&mut *asked.lock().unwrap());
    assert!(
        !calls.is_empty() && calls.iter().all(|call| call == "CONNECT zoom.invalid:443 HTTP/1.1"),
        "{calls:?}"
    );

    let mut past = front.check("https://zoom.invalid");
    past.env("HTTPS_PROXY", &proxy).env("NO_PROXY", "zoom.invalid");
    let (code, out, err) = run(past).await;
    assert_eq!(code, 1, "{out}{err}");
    assert!(asked.lock().unwrap().is_empty(), "there is no such host, and the proxy was not asked");
}
