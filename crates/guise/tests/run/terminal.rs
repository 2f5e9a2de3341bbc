//! Terminals: `-t` behind a pseudo-terminal that `script` makes.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::home::{BOX, GUISE, Guise, Home, PATIENCE, in_every_guise};

in_every_guise!(a_shell_on_a_terminal, detach_leaves_it_running_and_attach_comes_back,);

pub struct Terminal {
    child: Child,
    stdin: Option<ChildStdin>,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// A command line on a terminal of 40 rows and 100 columns.
    pub fn open(home: &Home, line: &str) -> Terminal {
        let line = format!("stty rows 40 cols 100; exec {} {line}", *GUISE);
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .envs(home.places())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let all = shown.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                all.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        let stdin = child.stdin.take();
        Terminal { child, stdin, shown }
    }

    pub fn type_in(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Changes its size, as a window's user does.
    fn resize(&self, rows: u16, columns: u16) {
        let script = self.child.id();
        let children = format!("/proc/{script}/task/{script}/children");
        let child = std::fs::read_to_string(children).unwrap();
        let terminal = format!("/proc/{}/fd/0", child.trim());
        let terminal = std::fs::File::options().read(true).write(true).open(terminal).unwrap();
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).unwrap();
    }

    /// Everything that was shown so far.
    pub fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    pub fn until(&self, home: &Home, text: &str) {
        self.until_within(PATIENCE, home, text);
    }

    pub fn until_within(&self, patience: Duration, home: &Home, text: &str) {
        let what = format!("{text:?} is shown, but {:?}", self.shown.lock().unwrap());
        home.until_within(patience, &what, || self.shown.lock().unwrap().contains(text));
    }

    pub fn end(mut self) -> i32 {
        let status = self.child.wait().unwrap();
        drop(self.stdin.take());
        status.code().unwrap_or(-1)
    }
}

fn a_shell_on_a_terminal(guise: Guise) {
    let Some(home) = Home::new("shell", guise) else { return };
    let mut terminal = Terminal::open(
        &home,
        &format!("run {} --rm -it {} sh", guise.options().join(" "), home.image()),
    );
    terminal.until(&home, "#");
    terminal.type_in("stty size; tty; echo end-$((6*7))\n");
    terminal.until(&home, "end-42");
    let shown = terminal.shown();
    assert!(shown.contains("40 100") && shown.contains("/dev/pts/0"), "{shown}");
    terminal.resize(50, 120);
    terminal.type_in("until stty size | grep '50 120'; do sleep 0.1; done\n");
    terminal.until(&home, "50 120\r\n");
    // Ctrl-C is the program's, not this command's.
    terminal.type_in("sh -c 'echo began-$((6*8)); exec sleep 1000'\n");
    terminal.until(&home, "began-48");
    terminal.type_in("\x03");
    terminal.type_in("exit 3\n");
    assert_eq!(terminal.end(), 3);
    assert_eq!(home.good(&["ps", "-aq"]), "");
}

fn detach_leaves_it_running_and_attach_comes_back(guise: Guise) {
    let Some(home) = Home::new("detach", guise) else { return };
    let mut terminal = Terminal::open(
        &home,
        &format!("run {} -it --name it {} sh", guise.options().join(" "), home.image()),
    );
    terminal.until(&home, "#");
    terminal.type_in("x=kept\n\x10\x11");
    assert_eq!(terminal.end(), 0);
    assert_eq!(home.inspect("it")["status"]["phase"], "running");
    let mut again = Terminal::open(&home, "attach it");
    again.type_in("echo it-was-$x; exit 4\n");
    again.until(&home, "it-was-kept");
    assert_eq!(again.end(), 4);
    assert_eq!(home.inspect("it")["status"]["exit_code"], 4);
    // Without a terminal -it says so, and makes nothing.
    let said = home.guise(&["run", "-it", BOX, "true"]);
    assert_eq!((said.code, said.err.lines().count()), (125, 1), "{}", said.err);
}
