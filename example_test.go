package kith_test

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/kithproject/kith"
	"github.com/kithproject/kith/code"
)

// Two devices pair: one shows a code, the other enters it, and the six digits
// that the second shows are typed on the first.
func ExampleNode_Offer() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	node, err := kith.Open(ctx, kith.Config{Name: "desk"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	p, err := node.Offer(ctx, kith.OfferConfig{Method: code.MethodWords})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("enter on the other device:", p.Code().Words())
	for ev := range p.Events() {
		if ev.Ask {
			var digits string
			fmt.Print("digits on its screen: ")
			if _, err := fmt.Scanln(&digits); err != nil {
				fmt.Println(err)
				return
			}
			if err := p.Accept(digits); err != nil {
				fmt.Println(err)
			}
		}
	}
	device, err := p.Wait(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("paired with", device.Name)
}

// A paired device is reached by its name, with an ordinary net.Conn.
func ExampleNode_Dial() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	node, err := kith.Open(ctx, kith.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	conn, err := node.Dial(ctx, "tcp", "laptop:7")
	if err != nil {
		fmt.Println(err) // says what is being waited for, if laptop is not there
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		fmt.Println(err)
		return
	}
}
