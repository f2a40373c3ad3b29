//! Plain HTTP: who may call, and which path is whose.
//!
//! Called by `service` for everything that is not gRPC. Texts and statuses are etcd's.

mod health;

use crate::api::Api;
use crate::api::maintenance::minor_release;
use crate::config::Http;
use ::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW,
    CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS,
};
use ::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use rustix::process::{Resource, getrlimit};
use tonic::body::Body;

pub const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const CLUSTER_ID: &str = "x-etcd-cluster-id";

#[derive(serde::Serialize)]
struct Releases<'a> {
    etcdserver: &'a str,
    etcdcluster: &'a str,
    storage: &'a str,
}

/// A member as members tell each other.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Member<'a> {
    id: u64,
    /// `null`: none.
    #[serde(rename = "peerURLs")]
    peer_urls: Option<&'a [String]>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "clientURLs", skip_serializing_if = "<[_]>::is_empty")]
    client_urls: &'a [String],
}

/// What clients are told, apart from the gateway's paths.
pub async fn plain(api: &Api, request: &Request<()>) -> Response<Body> {
    match request.uri().path() {
        "/version" => get(request).unwrap_or_else(|| releases(api)),
        "/debug/vars" => answer(StatusCode::OK, JSON, variables()),
        _ => metrics(api, request).await,
    }
}

/// What those are told who watch over this server.
pub async fn metrics(api: &Api, request: &Request<()>) -> Response<Body> {
    let query = request.uri().query().unwrap_or("");
    match request.uri().path() {
        "/metrics" => answer(StatusCode::OK, METRICS, api.store.metrics().scrape(api).await),
        "/health" => match get(request) {
            Some(refusal) => refusal,
            None => health::health(api, query).await,
        },
        path if health::is_probe(path) => match get(request) {
            Some(refusal) => refusal,
            None => health::probe(api, path, query).await,
        },
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// What a member that is to join asks those that are there.
pub fn peers(api: &Api, request: &Request<()>) -> Response<Body> {
    match request.uri().path() {
        "/version" => get(request).unwrap_or_else(|| releases(api)),
        "/members" => get(request).unwrap_or_else(|| members(api)),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// The refusal of every other method.
fn get(request: &Request<()>) -> Option<Response<Body>> {
    (request.method() != Method::GET).then(|| {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        response
    })
}

fn releases(api: &Api) -> Response<Body> {
    let minor = minor_release(&api.about.version);
    let releases = Releases { etcdserver: &api.about.version, etcdcluster: &minor, storage: &minor };
    answer(StatusCode::OK, JSON, serde_json::to_string(&releases).expect("texts can be written as JSON"))
}

/// Of etcd's variables the one that tells nothing of its secrets, and is not Go's.
fn variables() -> String {
    let limit = getrlimit(Resource::Nofile).current;
    serde_json::json!({ "file_descriptor_limit": limit }).to_string()
}

fn members(api: &Api) -> Response<Body> {
    let (identity, view) = (api.store.identity(), api.store.view());
    let member = Member {
        id: identity.member_id,
        peer_urls: view.peer_urls.as_deref().filter(|urls| !urls.is_empty()),
        name: &api.about.member_name,
        client_urls: &api.about.client_urls,
    };
    let mut body = serde_json::to_string(&[member]).expect("texts and numbers can be written as JSON");
    body.push('\n');
    let mut response = answer(StatusCode::OK, JSON, body);
    let cluster =
        HeaderValue::try_from(format!("{:x}", identity.cluster_id)).expect("digits can be a header");
    response.headers_mut().insert(CLUSTER_ID, cluster);
    response
}

/// What may not pass: hosts that are not on the list, where no certificate says that the client meant this server.
pub fn refuse_host(options: &Http, request: &Request<Body>) -> Option<Response<Body>> {
    let host = host(request);
    if options.host_whitelist.is_empty()
        || options.host_whitelist.iter().any(|allowed| allowed == "*" || *allowed == host)
    {
        return None;
    }
    tracing::warn!(host, "rejecting HTTP request to prevent DNS rebinding attacks");
    Some(text(
        StatusCode::MISDIRECTED_REQUEST,
        format!(
            "The host {host:?} is not one this server is known by, so a page that resolves its own name to it could be \
             asking (CVE-2018-5702).\nUse TLS, or add the host to --host-whitelist.\n"
        ),
    ))
}

/// The host a request is addressed to, without its port.
fn host(request: &Request<Body>) -> String {
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority = header.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    let authority = authority.unwrap_or("");
    let host = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// A browser asks before it sends: what it may is in the headers.
pub fn preflight(options: &Http, request: &Request<Body>) -> Option<Response<Body>> {
    (request.method() == Method::OPTIONS && !options.cors.is_empty()).then(|| Response::new(Body::empty()))
}

/// The headers that let pages of other origins read the answer.
pub fn allow_origin(options: &Http, asked: &HeaderMap, headers: &mut HeaderMap) {
    let origin = if options.cors.iter().any(|origin| origin == "*") {
        Some(HeaderValue::from_static("*"))
    } else {
        let listed = |origin: &&HeaderValue| options.cors.iter().any(|allowed| allowed == *origin);
        asked.get(ORIGIN).filter(listed).cloned()
    };
    if let Some(origin) = origin {
        let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let allowed = HeaderValue::from_static("accept, content-type, authorization");
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
}

pub fn text(status: StatusCode, body: impl Into<String>) -> Response<Body> {
    let mut response = answer(status, TEXT, body.into());
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::new(http_body_util::Full::new(bytes::Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_not_listed_is_misdirected() {
        let options = Http { host_whitelist: vec!["localhost".into(), "::1".into()], ..Http::default() };
        let refused = |host: &str| {
            let request = Request::builder().header(HOST, host).body(Body::empty()).unwrap();
            refuse_host(&options, &request).map(|response| response.status().as_u16())
        };
        assert_eq!(
            [refused("localhost:2379"), refused("[::1]:2379"), refused("evil.example")],
            [None, None, Some(421)]
        );
    }

    #[test]
    fn origins_are_allowed_as_listed() {
        let allowed = |cors: &[&str], origin: &'static str| {
            let cors = cors.iter().map(|origin| (*origin).to_owned()).collect();
            let options = Http { cors, ..Http::default() };
            let asked = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
            let mut headers = HeaderMap::new();
            allow_origin(&options, &asked, &mut headers);
            headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).map(|origin| origin.to_str().unwrap().to_owned())
        };
        assert_eq!(allowed(&["*"], "http://a"), Some("*".into()));
        assert_eq!(allowed(&["http://a"], "http://a"), Some("http://a".into()));
        assert_eq!(allowed(&["http://a"], "http://b"), None);
    }
}
