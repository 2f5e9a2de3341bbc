;; What the tests have a WebAssembly program do, by the first letter of its first argument:
;;   x N          end with code N
;;   e TEXT       print a line; E TEXT prints it on standard error
;;   v            print the environment
;;   c            copy standard input to standard output
;;   r DIR PATH   print a file below the DIRth folder (3 is the first)
;;   w DIR PATH TEXT   add a line to such a file
;;   l            add a line to /n, print it all, and wait for ever
;;   k            print what kind of file standard output is, as a letter
;;   s            compute for ever
;;   z            wait for ever
;;   b            print a dot on a line of its own twenty times a second
;;   g N          take N more pages of memory, or fail as allocators do
;;   t            do what cannot be done
(module
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get"
    (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get"
    (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read"
    (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_fdstat_get"
    (func $fd_fdstat_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))

  ;; 0 a vector and what was done; 1024 pointers to arguments and variables; 4096 their text;
  ;; 32768 what is waited for; 65536 to 131072 what is copied.
  (memory (export "memory") 2)
  (data (i32.const 512) "\n")
  (data (i32.const 513) ".")
  (data (i32.const 514) "n")
  (data (i32.const 515) "life\00")

  ;; Ends with a host's error as the code.
  (func $check (param $error i32)
    (if (local.get $error) (then (call $proc_exit (local.get $error)))))

  (func $argument (param $n i32) (result i32)
    (i32.load (i32.add (i32.const 1024) (i32.mul (local.get $n) (i32.const 4)))))

  (func $length (param $text i32) (result i32)
    (local $end i32)
    (local.set $end (local.get $text))
    (block $out
      (loop $more
        (br_if $out (i32.eqz (i32.load8_u (local.get $end))))
        (local.set $end (i32.add (local.get $end) (i32.const 1)))
        (br $more)))
    (i32.sub (local.get $end) (local.get $text)))

  (func $number (param $text i32) (result i32)
    (local $sum i32)
    (block $out
      (loop $more
        (br_if $out (i32.eqz (i32.load8_u (local.get $text))))
        (local.set $sum
          (i32.add
            (i32.mul (local.get $sum) (i32.const 10))
            (i32.sub (i32.load8_u (local.get $text)) (i32.const 48))))
        (local.set $text (i32.add (local.get $text) (i32.const 1)))
        (br $more)))
    (local.get $sum))

  (func $write (param $fd i32) (param $from i32) (param $size i32)
    (block $out
      (loop $more
        (br_if $out (i32.eqz (local.get $size)))
        (i32.store (i32.const 0) (local.get $from))
        (i32.store (i32.const 4) (local.get $size))
        (call $check
          (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
        (local.set $from (i32.add (local.get $from) (i32.load (i32.const 8))))
        (local.set $size (i32.sub (local.get $size) (i32.load (i32.const 8))))
        (br $more))))

  (func $line (param $fd i32) (param $text i32)
    (call $write (local.get $fd) (local.get $text) (call $length (local.get $text)))
    (call $write (local.get $fd) (i32.const 512) (i32.const 1)))

  (func $copy (param $fd i32)
    (block $out
      (loop $more
        (i32.store (i32.const 0) (i32.const 65536))
        (i32.store (i32.const 4) (i32.const 65536))
        (call $check
          (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br_if $out (i32.eqz (i32.load (i32.const 8))))
        (call $write (i32.const 1) (i32.const 65536) (i32.load (i32.const 8)))
        (br $more))))

  (func $open (param $dir i32) (param $path i32) (param $size i32)
    (param $how i32) (param $rights i64) (param $flags i32) (result i32)
    (call $check
      (call $path_open (local.get $dir) (i32.const 1) (local.get $path) (local.get $size)
        (local.get $how) (local.get $rights) (i64.const 0) (local.get $flags) (i32.const 16)))
    (i32.load (i32.const 16)))

  (func $read_file (param $dir i32) (param $path i32) (param $size i32)
    (call $copy
      (call $open (local.get $dir) (local.get $path) (local.get $size)
        (i32.const 0) (i64.const 2) (i32.const 0))))

  ;; Makes the file where it is not there, and writes at its end.
  (func $add_line (param $dir i32) (param $path i32) (param $size i32) (param $text i32)
    (call $line
      (call $open (local.get $dir) (local.get $path) (local.get $size)
        (i32.const 1) (i64.const 64) (i32.const 1))
      (local.get $text)))

  (func $wait (param $milliseconds i64)
    (i32.store8 (i32.const 32776) (i32.const 0))
    (i32.store (i32.const 32784) (i32.const 1))
    (i64.store (i32.const 32792) (i64.mul (local.get $milliseconds) (i64.const 1000000)))
    (i64.store (i32.const 32800) (i64.const 0))
    (i32.store16 (i32.const 32808) (i32.const 0))
    (call $check
      (call $poll_oneoff (i32.const 32768) (i32.const 33024) (i32.const 1) (i32.const 33088))))

  (func $wait_for_ever
    (loop $more (call $wait (i64.const 1000000)) (br $more)))

  (func $is (param $letter i32) (result i32)
    (i32.eq (i32.load8_u (call $argument (i32.const 1))) (local.get $letter)))

  (func $environment
    (local $n i32)
    (call $check (call $environ_sizes_get (i32.const 16) (i32.const 20)))
    (call $check (call $environ_get (i32.const 1024) (i32.const 4096)))
    (block $out
      (loop $more
        (br_if $out (i32.eq (local.get $n) (i32.load (i32.const 16))))
        (call $line (i32.const 1) (call $argument (local.get $n)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $more))))

  (func $path_length (result i32) (call $length (call $argument (i32.const 3))))

  (func (export "_start")
    (call $check (call $args_sizes_get (i32.const 16) (i32.const 20)))
    (call $check (call $args_get (i32.const 1024) (i32.const 4096)))
    (if (i32.lt_u (i32.load (i32.const 16)) (i32.const 2)) (then (return)))
    (if (call $is (i32.const 0x78)) (then
      (call $proc_exit (call $number (call $argument (i32.const 2))))))
    (if (call $is (i32.const 0x65)) (then
      (call $line (i32.const 1) (call $argument (i32.const 2)))))
    (if (call $is (i32.const 0x45)) (then
      (call $line (i32.const 2) (call $argument (i32.const 2)))))
    (if (call $is (i32.const 0x76)) (then (call $environment)))
    (if (call $is (i32.const 0x63)) (then (call $copy (i32.const 0))))
    (if (call $is (i32.const 0x72)) (then
      (call $read_file (call $number (call $argument (i32.const 2)))
        (call $argument (i32.const 3)) (call $path_length))))
    (if (call $is (i32.const 0x77)) (then
      (call $add_line (call $number (call $argument (i32.const 2)))
        (call $argument (i32.const 3)) (call $path_length) (call $argument (i32.const 4)))))
    (if (call $is (i32.const 0x6c)) (then
      (call $add_line (i32.const 3) (i32.const 514) (i32.const 1) (i32.const 515))
      (call $read_file (i32.const 3) (i32.const 514) (i32.const 1))
      (call $wait_for_ever)))
    (if (call $is (i32.const 0x6b)) (then
      (call $check (call $fd_fdstat_get (i32.const 1) (i32.const 600)))
      (i32.store16 (i32.const 600) (i32.add (i32.load8_u (i32.const 600)) (i32.const 0x61)))
      (call $line (i32.const 1) (i32.const 600))))
    (if (call $is (i32.const 0x73)) (then (loop $more (br $more))))
    (if (call $is (i32.const 0x7a)) (then (call $wait_for_ever)))
    (if (call $is (i32.const 0x62)) (then
      (loop $more
        (call $write (i32.const 1) (i32.const 513) (i32.const 1))
        (call $write (i32.const 1) (i32.const 512) (i32.const 1))
        (call $wait (i64.const 50))
        (br $more))))
    (if (call $is (i32.const 0x67)) (then
      (if (i32.eq (memory.grow (call $number (call $argument (i32.const 2)))) (i32.const -1))
        (then unreachable))))
    (if (call $is (i32.const 0x74)) (then unreachable))))
