// SPDX-License-Identifier: GPL-2.0-or-later

// Goroutines allocate, fill and check until standard input ends; the collector runs all the time.
package main

import (
	"fmt"
	"os"
	"sync/atomic"
)

func work(stop *atomic.Bool, total *atomic.Int64, done chan bool) {
	var slots [64][]byte
	for round := 0; !stop.Load(); round++ {
		i := round % len(slots)
		for _, b := range slots[i] {
			if b != byte(i) {
				panic("a byte is not what was written")
			}
		}
		slots[i] = make([]byte, 16+round*7919%40000)
		for j := range slots[i] {
			slots[i][j] = byte(i)
		}
		total.Add(1)
	}
	done <- true
}

func main() {
	var stop atomic.Bool
	var total atomic.Int64
	done := make(chan bool)
	for i := 0; i < 4; i++ {
		go work(&stop, &total, done)
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	stop.Store(true)
	for i := 0; i < 4; i++ {
		<-done
	}
	fmt.Println("good", total.Load())
}
