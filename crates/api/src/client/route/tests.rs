use super::*;

#[test]
fn addresses_as_people_write_them() {
    let at = |url: &str| Route::to(url, &Trust::System).map(|route| route.to_string());
    assert_eq!(at("https://host.example").unwrap(), "host.example:8443");
    assert_eq!(at("https://host.example:1/").unwrap(), "host.example:1");
    assert_eq!(at("https://[::1]:90").unwrap(), "::1:90");
    assert_eq!(at("https://[::1]").unwrap(), "::1:8443");
    assert_eq!(at("http://127.0.0.1:80").unwrap(), "127.0.0.1:80");
    for bad in
        ["host", "https://", "https://:1", "https://h:0", "https://h:x", "ftp://h", "https://u@h"]
    {
        assert!(matches!(at(bad), Err(RouteError::Address(_))), "{bad}");
    }
    for open in ["http://host.example", "http://192.0.2.1:80"] {
        assert!(matches!(at(open), Err(RouteError::Clear(_))), "{open}");
    }
}

#[test]
fn fingerprints_have_one_form() {
    let own = fingerprint(b"certificate");
    assert_eq!(own.len(), "sha256:".len() + 64);
    assert!(Route::to("https://h", &Trust::Fingerprint(own)).is_ok());
    for bad in ["", "sha256:", "sha256:zz", &"0".repeat(64)] {
        let refused = Route::to("https://h", &Trust::Fingerprint(bad.to_owned()));
        assert!(matches!(refused, Err(RouteError::Fingerprint(_))), "{bad}");
    }
}

#[test]
fn what_is_not_trusted_comes_with_a_way_out() {
    let told = |error: TlsError| distrust(&std::io::Error::other(error)).unwrap();
    for (why, hint) in [
        (CertificateError::UnknownIssuer, "--fingerprint"),
        (CertificateError::ApplicationVerificationFailure, "guise info"),
        (CertificateError::Expired, "--tls-cert"),
        (CertificateError::NotValidYet, "time"),
        (CertificateError::NotValidForName, "another name"),
        (CertificateError::BadSignature, "guise info"),
    ] {
        let line = told(TlsError::InvalidCertificate(why));
        assert!(line.contains(hint) && line.lines().count() == 1, "{line}");
    }
    assert!(told(TlsError::HandshakeNotComplete).contains("without TLS"));
    assert_eq!(distrust(&std::io::ErrorKind::ConnectionRefused.into()), None);
}
