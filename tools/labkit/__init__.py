"""The lab's parts, one module per topic.

The problem: Scoria can only be tried against a real Cinder control plane and two real, mirrored
Ceph clusters. This package runs all of that as ordinary processes on loopback, in one directory,
so that a developer can bring it up, break it and throw it away, twice on the same machine.

    cli         what the commands mean        plan        what to start, in which order
    state       the lab's directory and file  procs       which processes are ours, signals
    component   what a component is           status      the table, health and memory
    ceph        two sites, mirroring          ceph_setup  (child process) pools, peers
    mariadb, rabbitmq, cinder, scoria         env         names that others build on
    auth        with Keystone or without      keystone, glance, web
"""
