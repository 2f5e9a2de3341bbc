;; A first WebAssembly program: says that it runs, and who it was told to greet.
(module
  (import "wasi_snapshot_preview1" "args_sizes_get"
    (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "A WebAssembly program says: hello,")
  ;; What comes before each argument, and what ends the line.
  (data (i32.const 98) " ")
  (data (i32.const 99) "\n")

  (func $write (param $from i32) (param $size i32)
    (i32.store (i32.const 0) (local.get $from))
    (i32.store (i32.const 4) (local.get $size))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))

  (func $length (param $text i32) (result i32)
    (local $end i32)
    (local.set $end (local.get $text))
    (block $out
      (loop $more
        (br_if $out (i32.eqz (i32.load8_u (local.get $end))))
        (local.set $end (i32.add (local.get $end) (i32.const 1)))
        (br $more)))
    (i32.sub (local.get $end) (local.get $text)))

  (func (export "_start")
    (local $n i32)
    (local $text i32)
    (drop (call $args_sizes_get (i32.const 16) (i32.const 20)))
    (drop (call $args_get (i32.const 1024) (i32.const 4096)))
    (call $write (i32.const 64) (i32.const 34))
    (local.set $n (i32.const 1))
    (block $out
      (loop $more
        (br_if $out (i32.ge_u (local.get $n) (i32.load (i32.const 16))))
        (local.set $text
          (i32.load (i32.add (i32.const 1024) (i32.mul (local.get $n) (i32.const 4)))))
        (call $write (i32.const 98) (i32.const 1))
        (call $write (local.get $text) (call $length (local.get $text)))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $more)))
    (call $write (i32.const 99) (i32.const 1))))
