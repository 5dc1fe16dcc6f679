//! A client of the service's API.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::header::HeaderValue;
use serde_json::Value;

use crate::harness::Archive;

pub struct Caller {
    pub client: reqwest::Client,
    /// The service's address, as a URL.
    pub base: String,
}

impl Caller {
    pub fn new(base: String) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap();
        Self { client, base }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.client.post(self.url(path)).json(body).send().await.unwrap()
    }

    pub async fn submit(&self, body: &Value) -> String {
        let response = self.post("/v1/jobs", body).await;
        assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
        let job: Value = response.json().await.unwrap();
        job["id"].as_str().unwrap().to_owned()
    }

    pub async fn job(&self, id: &str) -> Value {
        self.get(&format!("/v1/jobs/{id}")).await.json().await.unwrap()
    }

    /// Follows a job by long polling until `done` says so.
    pub async fn wait_until(&self, id: &str, done: impl Fn(&Value) -> bool) -> Value {
        // Another ETag than the job's is answered at once.
        let mut job = Value::Null;
        let (mut etag, mut unchanged) = (HeaderValue::from_static("\"none yet\""), 0);
        for _ in 0..2_000 {
            let request = self.client.get(self.url(&format!("/v1/jobs/{id}?wait=20s")));
            let response = request.header("if-none-match", &etag).send().await.unwrap();
            if response.status() == 304 {
                unchanged += 1;
                assert!(unchanged < 3, "nothing has changed for a minute: {job:#}");
                continue;
            }
            unchanged = 0;
            etag = response.headers()["etag"].clone();
            job = response.json().await.unwrap();
            if done(&job) {
                return job;
            }
            let over = ["failed", "cancelled", "expired"].contains(&job["state"].as_str().unwrap());
            assert!(!over, "the job ended before it got there: {job:#}");
        }
        panic!("it does not get there: {job:#}");
    }

    pub async fn finished(&self, id: &str) -> Value {
        self.wait_until(id, is_final).await
    }

    pub async fn cancel(&self, id: &str) {
        assert_eq!(self.post(&format!("/v1/jobs/{id}/cancel"), &Value::Null).await.status(), 202);
    }

    pub async fn retry(&self, id: &str) {
        assert_eq!(self.post(&format!("/v1/jobs/{id}/retry"), &Value::Null).await.status(), 202);
    }

    /// Retries a job and follows it to its end.
    pub async fn retried(&self, id: &str) -> Value {
        self.retry(id).await;
        self.finished(id).await
    }

    pub async fn archive(&self, id: &str) -> Archive {
        let response = self.get(&format!("/v1/jobs/{id}/archive")).await;
        assert_eq!(response.status(), 200);
        Archive::read(response.bytes().await.unwrap().to_vec())
    }

    pub async fn failures(&self, id: &str) -> Vec<Value> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: Value =
                self.get(&format!("/v1/jobs/{id}/failures?limit=7{cursor}")).await.json().await.unwrap();
            all.extend(page["items"].as_array().unwrap().iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }

    /// The codes of a job's failures, each once.
    pub async fn codes(&self, id: &str) -> Vec<String> {
        let failures = self.failures(id).await;
        let codes: BTreeSet<_> = failures.iter().map(|failure| failure["code"].as_str().unwrap()).collect();
        codes.into_iter().map(str::to_owned).collect()
    }

    /// Runs one job to its end and returns it with its archive.
    pub async fn run(&self, body: &Value) -> (Value, Archive) {
        let id = self.submit(body).await;
        let job = self.finished(&id).await;
        assert!(job["archive"].is_object(), "{job:#}");
        (job, self.archive(&id).await)
    }
}

pub fn is_final(job: &Value) -> bool {
    !["queued", "running"].contains(&job["state"].as_str().unwrap())
}
