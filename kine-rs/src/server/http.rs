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
use tonic::body::Body;

pub const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(serde::Serialize)]
struct Releases<'a> {
    etcdserver: &'a str,
    etcdcluster: &'a str,
    storage: &'a str,
}

/// What the server is asked, apart from the gateway's paths.
pub async fn plain(api: &Api, request: Request<Body>) -> Response<Body> {
    let query = request.uri().query().unwrap_or("").to_owned();
    let path = request.uri().path();
    let known = matches!(path, "/health" | "/version") || health::is_probe(path);
    if known && request.method() != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match path {
        "/health" => health::health(api, &query).await,
        "/version" => {
            let minor = minor_release(&api.about.version);
            let releases = Releases { etcdserver: &api.about.version, etcdcluster: &minor, storage: &minor };
            answer(
                StatusCode::OK,
                JSON,
                serde_json::to_string(&releases).expect("texts can be written as JSON"),
            )
        }
        "/metrics" => answer(StatusCode::OK, METRICS, api.store.metrics().scrape(api).await),
        path if health::is_probe(path) => health::probe(api, path, &query).await,
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// What may not pass is answered here: hosts that are not on the list, and the question of a browser whether it may ask.
pub fn refuse(options: &Http, request: &Request<Body>, secure: bool) -> Option<Response<Body>> {
    if !secure && !host_allowed(options, request) {
        return Some(text(StatusCode::FORBIDDEN, "client hostname is not whitelisted\n"));
    }
    (request.method() == Method::OPTIONS && !options.cors.is_empty()).then(|| Response::new(Body::empty()))
}

fn host_allowed(options: &Http, request: &Request<Body>) -> bool {
    if options.host_whitelist.is_empty() || options.host_whitelist.iter().any(|host| host == "*") {
        return true;
    }
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority = header.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    let Some(host) = authority else { return false };
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    options.host_whitelist.iter().any(|allowed| allowed == host)
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

fn text(status: StatusCode, body: impl Into<String>) -> Response<Body> {
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
    fn a_host_that_is_not_listed_is_refused_without_tls_only() {
        let options = Http { host_whitelist: vec!["localhost".into(), "::1".into()], ..Http::default() };
        let refused = |host: &str, secure| {
            let request = Request::builder().header(HOST, host).body(Body::empty()).unwrap();
            refuse(&options, &request, secure).map(|response| response.status())
        };
        assert_eq!(refused("localhost:2379", false), None);
        assert_eq!(refused("[::1]:2379", false), None);
        assert_eq!(refused("evil.example", false), Some(StatusCode::FORBIDDEN));
        assert_eq!(refused("evil.example", true), None);
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
