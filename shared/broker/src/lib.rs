//! What is on the wire between roles; AMQP and in-process.
