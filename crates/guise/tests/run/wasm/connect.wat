;; A component that connects to port 9 of 127.0.0.1, and ends well if it may. The port's
;; number stands at PORT.
(component
  (import "wasi:sockets/network@0.2.0" (instance $network
    (export "network" (type (sub resource)))
    (type $error (enum "unknown" "access-denied" "not-supported" "invalid-argument"
      "out-of-memory" "timeout" "concurrency-conflict" "not-in-progress" "would-block"
      "invalid-state" "new-socket-limit" "address-not-bindable" "address-in-use"
      "remote-unreachable" "connection-refused" "connection-reset" "connection-aborted"
      "datagram-too-large" "name-unresolvable" "temporary-resolver-failure"
      "permanent-resolver-failure"))
    (export "error-code" (type (eq $error)))
    (type $family (enum "ipv4" "ipv6"))
    (export "ip-address-family" (type (eq $family)))
    (type $ipv4 (tuple u8 u8 u8 u8))
    (export "ipv4-address" (type $ipv4-address (eq $ipv4)))
    (type $ipv6 (tuple u16 u16 u16 u16 u16 u16 u16 u16))
    (export "ipv6-address" (type $ipv6-address (eq $ipv6)))
    (type $ipv4-socket (record (field "port" u16) (field "address" $ipv4-address)))
    (export "ipv4-socket-address" (type $ipv4-socket-address (eq $ipv4-socket)))
    (type $ipv6-socket (record (field "port" u16) (field "flow-info" u32)
      (field "address" $ipv6-address) (field "scope-id" u32)))
    (export "ipv6-socket-address" (type $ipv6-socket-address (eq $ipv6-socket)))
    (type $socket-address (variant (case "ipv4" $ipv4-socket-address)
      (case "ipv6" $ipv6-socket-address)))
    (export "ip-socket-address" (type (eq $socket-address)))))
  (alias export $network "network" (type $network-type))
  (alias export $network "error-code" (type $error-code))
  (alias export $network "ip-address-family" (type $family))
  (alias export $network "ip-socket-address" (type $address))
  (import "wasi:sockets/instance-network@0.2.0" (instance $instance-network
    (alias outer 1 $network-type (type $outer-network))
    (export "network" (type $n (eq $outer-network)))
    (export "instance-network" (func (result (own $n))))))
  (import "wasi:io/poll@0.2.0" (instance $poll
    (export "pollable" (type $p (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $p))))))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "input-stream" (type (sub resource)))
    (export "output-stream" (type (sub resource)))))
  (alias export $poll "pollable" (type $pollable))
  (alias export $streams "input-stream" (type $input))
  (alias export $streams "output-stream" (type $output))
  (import "wasi:sockets/tcp@0.2.0" (instance $tcp
    (alias outer 1 $pollable (type $outer-pollable))
    (export "pollable" (type $p (eq $outer-pollable)))
    (alias outer 1 $input (type $outer-input))
    (export "input-stream" (type $i (eq $outer-input)))
    (alias outer 1 $output (type $outer-output))
    (export "output-stream" (type $o (eq $outer-output)))
    (alias outer 1 $network-type (type $outer-network))
    (export "network" (type $n (eq $outer-network)))
    (alias outer 1 $error-code (type $outer-error))
    (export "error-code" (type $e (eq $outer-error)))
    (alias outer 1 $address (type $outer-address))
    (export "ip-socket-address" (type $a (eq $outer-address)))
    (export "tcp-socket" (type $s (sub resource)))
    (export "[method]tcp-socket.start-connect"
      (func (param "self" (borrow $s)) (param "network" (borrow $n))
        (param "remote-address" $a) (result (result (error $e)))))
    (export "[method]tcp-socket.subscribe"
      (func (param "self" (borrow $s)) (result (own $p))))
    (export "[method]tcp-socket.finish-connect"
      (func (param "self" (borrow $s))
        (result (result (tuple (own $i) (own $o)) (error $e)))))))
  (alias export $tcp "tcp-socket" (type $socket))
  (import "wasi:sockets/tcp-create-socket@0.2.0" (instance $create
    (alias outer 1 $error-code (type $outer-error))
    (export "error-code" (type $e (eq $outer-error)))
    (alias outer 1 $family (type $outer-family))
    (export "ip-address-family" (type $f (eq $outer-family)))
    (alias outer 1 $socket (type $outer-socket))
    (export "tcp-socket" (type $s (eq $outer-socket)))
    (export "create-tcp-socket"
      (func (param "address-family" $f) (result (result (own $s) (error $e)))))))

  (core module $memory (memory (export "memory") 1))
  (core instance $m (instantiate $memory))
  (core func $instance-network (canon lower (func $instance-network "instance-network")))
  (core func $create-socket
    (canon lower (func $create "create-tcp-socket") (memory (core memory $m "memory"))))
  (core func $connect
    (canon lower (func $tcp "[method]tcp-socket.start-connect") (memory (core memory $m "memory"))))

  (core func $subscribe (canon lower (func $tcp "[method]tcp-socket.subscribe")))
  (core func $block (canon lower (func $poll "[method]pollable.block")))
  (core func $finish
    (canon lower (func $tcp "[method]tcp-socket.finish-connect")
      (memory (core memory $m "memory"))))

  (core module $program
    (import "host" "memory" (memory 1))
    (import "host" "network" (func $network (result i32)))
    (import "host" "create" (func $create (param i32 i32)))
    (import "host" "connect" (func $connect
      (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
    (import "host" "subscribe" (func $subscribe (param i32) (result i32)))
    (import "host" "block" (func $block (param i32)))
    (import "host" "finish" (func $finish (param i32 i32)))
    ;; 0 is what creation gave, 16 what beginning to connect gave, 32 its outcome.
    (func (export "run") (result i32)
      (call $create (i32.const 0) (i32.const 0))
      (if (i32.load8_u (i32.const 0)) (then (return (i32.const 1))))
      (call $connect (i32.load (i32.const 4)) (call $network)
        (i32.const 0) (i32.const PORT)
        (i32.const 127) (i32.const 0) (i32.const 0) (i32.const 1)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 16))
      (if (i32.load8_u (i32.const 16)) (then (return (i32.const 1))))
      (call $block (call $subscribe (i32.load (i32.const 4))))
      (call $finish (i32.load (i32.const 4)) (i32.const 32))
      (i32.load8_u (i32.const 32))))
  (core instance $p (instantiate $program (with "host" (instance
    (export "memory" (memory $m "memory"))
    (export "network" (func $instance-network))
    (export "create" (func $create-socket))
    (export "connect" (func $connect))
    (export "subscribe" (func $subscribe))
    (export "block" (func $block))
    (export "finish" (func $finish))))))
  (func $run (result (result)) (canon lift (core func $p "run")))
  (instance $exported (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exported)))
