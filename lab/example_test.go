package lab_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/go-tcpls/tcpls/lab"
)

// Two hosts with two links, one of which gets worse.
func Example() {
	network, err := lab.New(lab.TwoHosts(
		lab.Shape{Rate: 100 * lab.Mbit, Delay: 20 * time.Millisecond},
		lab.Shape{Rate: 30 * lab.Mbit, Delay: 10 * time.Millisecond, Loss: 0.01},
	))
	if err != nil {
		log.Fatal(err) // needs root
	}
	defer network.Close()

	ctx := context.Background()
	client, server := network.Host("client"), network.Host("server")
	ln, err := server.Listen(ctx, "tcp", "10.0.0.2:7")
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go io.Copy(conn, conn)
		}
	}()

	conn, err := client.Dial(ctx, "tcp", "10.0.0.2:7")
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	err = network.Link("path0").ChangeFrom("client", func(s *lab.Shape) {
		s.Rate, s.Loss = 1*lab.Mbit, 0.05
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(conn, "hello")
	if err := network.Link("path0").Reset(); err != nil {
		log.Fatal(err)
	}
	_, err = io.ReadAll(conn)
	fmt.Println(err)

	counters, err := network.Link("path0").Counters("client")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(counters.Delivered, "packets from the client arrived,", counters.Lost, "were lost")
}
