package agent

// schemas gives the layout of every request in the table but Produce, whose decoder checks as it goes. A test encodes
// each with kmsg at every version and walks it.
func schemas() map[int16]*schema {
	return map[int16]*schema{
		1: fetchSchema(),
		2: {flexible: 6, fields: []field{ // ListOffsets
			i32(), i8().since(2),
			structs(str(), structs(i32(), i32().since(4), i64(), i32().until(0))),
			i32().since(10),
		}},
		3: {flexible: 9, fields: []field{ // Metadata
			structs(uuidField().since(10), str()), i8().since(4), i8().since(8).until(10), i8().since(8),
		}},
		8: {flexible: 8, fields: []field{ // OffsetCommit
			str(), i32().since(1), str().since(1), str().since(7), i64().since(2).until(4),
			structs(str().until(9), uuidField().since(10), structs(i32(), i64(), i64().since(1).until(1), i32().since(6), str())),
		}},
		9: {flexible: 6, fields: []field{ // OffsetFetch
			str().until(7), structs(str(), array(i32())).until(7),
			structs(str(), str().since(9), i32().since(9),
				structs(str().until(9), uuidField().since(10), array(i32()))).since(8),
			i8().since(7),
		}},
		11: {flexible: 6, fields: []field{ // JoinGroup
			str(), i32(), i32().since(1), str(), str().since(5), str(), structs(str(), byteString()), str().since(8),
		}},
		12: {flexible: 4, fields: []field{ // Heartbeat
			str(), i32(), str(), str().since(3),
		}},
		13: {flexible: 4, fields: []field{ // LeaveGroup
			str(), str().until(2), structs(str(), str(), str().since(5)).since(3),
		}},
		14: {flexible: 4, fields: []field{ // SyncGroup
			str(), i32(), str(), str().since(3), str().since(5), str().since(5), structs(str(), byteString()),
		}},
		15: {flexible: 5, fields: []field{ // DescribeGroups
			array(str()), i8().since(3),
		}},
		16: {flexible: 3, fields: []field{ // ListGroups
			array(str()).since(4), array(str()).since(5),
		}},
		42: {flexible: 2, fields: []field{ // DeleteGroups
			array(str()),
		}},
		68: {flexible: 0, fields: []field{ // ConsumerGroupHeartbeat
			str(), str(), i32(), str(), str(), i32(), array(str()), str().since(1), str(), structs(uuidField(), array(i32())),
		}},
		69: {flexible: 0, fields: []field{ // ConsumerGroupDescribe
			array(str()), i8(),
		}},
		47: {flexible: neverFlexible, fields: []field{ // OffsetDelete
			str(), structs(str(), structs(i32())),
		}},
		10: {flexible: 3, fields: []field{ // FindCoordinator
			str().until(3), i8().since(1), array(str()).since(4),
		}},
		18: {flexible: 3, fields: []field{ // ApiVersions
			str().since(3), str().since(3),
		}},
		19: {flexible: 5, fields: []field{ // CreateTopics
			structs(str(), i32(), i16(), structs(i32(), array(i32())), structs(str(), str())), i32(), i8().since(1),
		}},
		20: {flexible: 4, fields: []field{ // DeleteTopics
			array(str()).until(5), structs(str(), uuidField()).since(6), i32(),
		}},
		21: {flexible: 2, fields: []field{ // DeleteRecords
			structs(str(), structs(i32(), i64())), i32(),
		}},
		22: {flexible: 2, fields: []field{ // InitProducerId
			str(), i32(), i64().since(3), i16().since(3),
		}},
		23: {flexible: 4, fields: []field{ // OffsetForLeaderEpoch
			i32().since(3), structs(str(), structs(i32(), i32().since(2), i32())),
		}},
		24: {flexible: 3, fields: []field{ // AddPartitionsToTxn
			str().until(3), i64().until(3), i16().until(3), structs(str(), array(i32())).until(3),
			structs(str(), i64(), i16(), i8(), structs(str(), array(i32()))).since(4),
		}},
		25: {flexible: 3, fields: []field{ // AddOffsetsToTxn
			str(), i64(), i16(), str(),
		}},
		26: {flexible: 3, fields: []field{ // EndTxn
			str(), i64(), i16(), i8(),
		}},
		27: {flexible: 1, fields: []field{ // WriteTxnMarkers
			structs(i64(), i16(), i8(), structs(str(), array(i32())), i32(), i8().since(2)),
		}},
		28: {flexible: 3, fields: []field{ // TxnOffsetCommit
			str(), str(), i64(), i16(), i32().since(3), str().since(3), str().since(3),
			structs(str().until(5), uuidField().since(6), structs(i32(), i64(), i32().since(2), str())),
		}},
		61: {flexible: 0, fields: []field{ // DescribeProducers
			structs(str(), array(i32())),
		}},
		65: {flexible: 0, fields: []field{ // DescribeTransactions
			array(str()),
		}},
		66: {flexible: 0, fields: []field{ // ListTransactions
			array(str()), array(i64()), i64().since(1), str().since(2),
		}},
		32: {flexible: 4, fields: []field{ // DescribeConfigs
			structs(i8(), str(), array(str())), i8().since(1), i8().since(3),
		}},
		33: {flexible: 2, fields: []field{ // AlterConfigs
			structs(i8(), str(), structs(str(), str())), i8(),
		}},
		35: {flexible: 2, fields: []field{ // DescribeLogDirs
			structs(str(), array(i32())),
		}},
		37: {flexible: 2, fields: []field{ // CreatePartitions
			structs(str(), i32(), structs(array(i32()))), i32(), i8(),
		}},
		44: {flexible: 1, fields: []field{ // IncrementalAlterConfigs
			structs(i8(), str(), structs(str(), i8(), str())), i8(),
		}},
		34: {flexible: 2, fields: []field{ // AlterReplicaLogDirs
			structs(str(), structs(str(), array(i32()))),
		}},
		43: {flexible: 2, fields: []field{ // ElectLeaders
			i8().since(1), structs(str(), array(i32())), i32(),
		}},
		45: {flexible: 0, fields: []field{ // AlterPartitionReassignments
			i32(), i8().since(1), structs(str(), structs(i32(), array(i32()))),
		}},
		46: {flexible: 0, fields: []field{ // ListPartitionReassignments
			i32(), structs(str(), array(i32())),
		}},
		29: {flexible: 2, fields: aclFields()},                      // DescribeAcls
		30: {flexible: 2, fields: []field{structs(aclFields()...)}}, // CreateAcls
		31: {flexible: 2, fields: []field{structs(aclFields()...)}}, // DeleteAcls
		48: {flexible: 1, fields: []field{ // DescribeClientQuotas
			structs(str(), i8(), str()), i8(),
		}},
		50: {flexible: 0, fields: []field{ // DescribeUserScramCredentials
			structs(str()),
		}},
		60: {flexible: 0, fields: []field{ // DescribeCluster
			i8(), i8().since(1), i8().since(2),
		}},
		74: {flexible: 0, fields: []field{ // ListConfigResources
			array(i8()).since(1),
		}},
		75: {flexible: 0, fields: []field{ // DescribeTopicPartitions
			structs(str()), i32(), option(str(), i32()),
		}},
	}
}

func fetchSchema() *schema {
	return &schema{
		flexible: 12,
		fields: []field{
			i32().until(14), i32(), i32(), i32().since(3), i8().since(4), i32().since(7), i32().since(7),
			structs(
				str().until(12), uuidField().since(13),
				structs(i32(), i32().since(9), i64(), i32().since(12), i64().since(5), i32()),
			),
			structs(str().until(12), uuidField().since(13), array(i32())).since(7),
			str().since(11),
		},
		tagged: map[uint32][]field{1: {i32(), i64()}}, // the state of a follower
	}
}

// aclFields are an ACL, or a filter of ACLs.
func aclFields() []field {
	return []field{i8(), str(), i8().since(1), str(), str(), i8(), i8()}
}
