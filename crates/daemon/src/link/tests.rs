use std::os::unix::fs::symlink;

use tokio::net::UnixListener;

use super::*;

#[tokio::test]
async fn only_a_socket_that_is_there_itself_is_a_workers() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    connect(&socket).await.unwrap();
    listener.accept().await.unwrap();
    let link = folder.path().join("link");
    symlink(&socket, &link).unwrap();
    assert!(connect(&link).await.is_err(), "the way to another's");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(connect(&file).await.unwrap_err().to_string().contains("no socket"));
    assert_eq!(
        connect(&folder.path().join("none")).await.unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_socket_of_a_long_name_is_reached_too() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let deep = folder.path().join("x".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    std::fs::rename(&socket, deep.join("socket")).unwrap();
    connect(&deep.join("socket")).await.unwrap();
}
