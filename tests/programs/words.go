// SPDX-License-Identifier: GPL-2.0-or-later

// A garbage-collected heap: a map of strings to slices, rebuilt in part again and again by several
// goroutines, and summed up in an order that does not depend on the map.
package main

import (
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"sync"
)

func build(part, entries int) map[string][]uint64 {
	words := map[string][]uint64{}
	for round := 0; round < 2; round++ {
		for i := 0; i < entries; i++ {
			values := make([]uint64, 64+i%64)
			for k := range values {
				values[k] = uint64(part*entries+i+round) * uint64(k+1) * 0x9e3779b97f4a7c15
			}
			words["word-"+strconv.Itoa(i)] = values
		}
	}
	return words
}

func checksum(words map[string][]uint64) uint64 {
	keys := make([]string, 0, len(words))
	for key := range words {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	var sum uint64
	for _, key := range keys {
		for _, value := range words[key] {
			sum = (sum ^ value) * 0x100000001b3
		}
	}
	return sum
}

func main() {
	entries, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	var sums [4]uint64
	var group sync.WaitGroup
	for part := range sums {
		group.Add(1)
		go func(part int) {
			defer group.Done()
			words := build(part, entries)
			sums[part] = checksum(words)
			runtime.KeepAlive(words)
		}(part)
	}
	group.Wait()
	fmt.Printf("%016x\n", sums)
}
