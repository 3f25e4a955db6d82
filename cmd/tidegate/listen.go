package main

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// checkListen says what is wrong with an address to listen on; nil: nothing.
func checkListen(key, address string) error {
	host, port, err := net.SplitHostPort(address)
	if bare, isPort := strconv.Atoi(address); isPort == nil && bare > 0 {
		return fmt.Errorf("%s: %q is a port alone; write \":%s\" for all addresses, or \"127.0.0.1:%s\" for this machine alone", key, address, address, address)
	}
	number, notNumber := strconv.Atoi(port)
	switch {
	case strings.Contains(address, "://"):
		return fmt.Errorf("%s: %q is a URL; expected host:port or :port, such as :8080", key, address)
	case err != nil && !strings.Contains(address, ":"):
		return fmt.Errorf("%s: %q has no port; write \"%s:8080\"", key, address, address)
	case err != nil:
		return fmt.Errorf("%s: %q is no address; expected host:port or :port, such as :8080 or [::1]:8080", key, address)
	case notNumber != nil || number < 0 || number > 65535:
		return fmt.Errorf("%s: the port of %q must be a number from 0 to 65535; 0 takes a free one", key, address)
	case strings.ContainsAny(host, "/ @"):
		return fmt.Errorf("%s: %q has no valid host; expected host:port or :port, such as :8080", key, address)
	}
	return nil
}

// listenFaults says what is wrong with the addresses that the gateway listens on.
func (s *serverConfig) listenFaults() (faults []error) {
	if s.Listen == "" {
		faults = append(faults, fmt.Errorf("server.listen: is empty; expected something like :8080"))
	} else if err := checkListen("server.listen", s.Listen); err != nil {
		faults = append(faults, err)
	}
	if s.OpsListen != "" {
		if err := checkListen("server.ops_listen", s.OpsListen); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) == 0 && samePort(s.Listen, s.OpsListen) {
		faults = append(faults, fmt.Errorf("server.ops_listen: %s is taken by server.listen, %s; choose another port", s.OpsListen, s.Listen))
	}
	return faults
}

// samePort reports whether two addresses cannot be listened on at the same time.
func samePort(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	numberA, _ := strconv.Atoi(portA)
	numberB, _ := strconv.Atoi(portB)
	return errA == nil && errB == nil && numberA == numberB && numberA != 0 &&
		(everyAddress(hostA) || everyAddress(hostB) || numeric(hostA) == numeric(hostB))
}

// everyAddress reports whether a host of an address to listen on stands for all of the
// machine's.
func everyAddress(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// numeric returns the address that localhost stands for, and other hosts as they are.
func numeric(host string) string {
	if strings.EqualFold(host, "localhost") {
		return "127.0.0.1"
	}
	return strings.ToLower(host)
}

// loopback reports whether an address is one that only this machine reaches.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip, notIP := netip.ParseAddr(numeric(host))
	return err == nil && notIP == nil && ip.IsLoopback()
}
