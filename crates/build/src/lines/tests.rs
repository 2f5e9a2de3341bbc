use super::*;

fn lines(text: &str) -> Vec<Line> {
    split(text).unwrap().0
}

#[test]
fn continuations_comments_and_flags() {
    let all = lines(
        "# syntax=docker/dockerfile:1\n\nfrom --platform=linux/amd64 debian AS base\n\
         RUN one && \\\n  # a comment\n\n  two\n",
    );
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].keyword, "FROM");
    assert_eq!(all[0].number, 3);
    assert_eq!(all[0].flags, [("platform".to_owned(), Some("linux/amd64".to_owned()))]);
    assert_eq!(all[0].rest, "debian AS base");
    assert_eq!(all[1].rest, "one &&   two");
}

#[test]
fn another_escape_character() {
    let (all, escape) = split("# escape=`\nRUN a `\n b\nRUN c \\\n").unwrap();
    assert_eq!(escape, '`');
    assert_eq!(all[0].rest, "a  b");
    assert_eq!(all[1].rest, "c \\");
    assert!(split("# escape=x\nRUN a").is_err());
}

#[test]
fn here_documents() {
    let all = lines("RUN <<EOF\none\n\ttwo\nEOF\nCOPY <<-'A' <<B /to/\n\ta\nA\nb\nB\nUSER x\n");
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].documents[0].text, "one\n\ttwo\n");
    assert!(all[0].documents[0].expands);
    let copied: Vec<_> =
        all[1].documents.iter().map(|d| (&d.name[..], &d.text[..], d.expands)).collect();
    assert_eq!(copied, [("A", "a\n", false), ("B", "b\n", true)]);
    assert!(split("RUN <<EOF\nnever").is_err());
}
